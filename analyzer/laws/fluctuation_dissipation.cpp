// SGD as LibTorch does it: v' = m v + (1-d) h, theta' = theta - eta v', h = g + lambda theta.
// Stationarity of |theta|^2: E[theta.v'] = (eta/2) E|v'|^2 =: A. Of theta.v, with
// theta.v = theta_before.v - eta |v|^2: A = m (A - eta E|v|^2) + (1-d) E[theta.h]. Together
//   E[theta.h] = (1+m) / (2 eta (1-d)) E|dtheta|^2,
// exact for any noise and any loss in a stationary state. Both hold for each parameter alone.
//
// A run that has not come to rest is no violation. But where the norm is at rest (rho = 1, see
// norm_stationarity.cpp) and the relation fails, the updates are not those of SGD on the gradients
// that were observed: that is one, unless they are known to be clipped, of which it says nothing.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/phase_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.05;

const LawDescription& law() {
  static const LawDescription description = {
      "fluctuation_dissipation",
      "Fluctuation-dissipation relation",
      Line::kEmpiricalLaws,
      "E[theta.(g + lambda theta)] = (1+momentum)/(2 eta (1-dampening)) E|dtheta|^2; measured: "
      "left over "
      "right",
      "SGD, with or without momentum but not Nesterov's; coupled weight decay above 0 "
      "(otherwise |theta| drifts forever); constant learning rate",
      "Once it holds, the loss has reached the noise floor of this learning rate: decay the "
      "learning "
      "rate, or stop",
      "Yaida 2018, arXiv:1810.00004",
      {"weight_dot_grad", "weight_norm_sq", "update_norm_sq", "weight_dot_update", "grad_norm_sq",
       "grad_dot_update"},
      {"If the loss does not depend on the scale of a weight, theta.g is 0 and the relation is "
       "only a balance of norms: the run's sums leave such weights out, unless there are no "
       "others.",
       "Holding is necessary, not sufficient, for the loss to have converged: slow directions with "
       "small "
       "gradients contribute little."}};
  return description;
}

std::string why_not(const ParameterSettings& s) {
  if (!s.known) return "the optimizer's settings are not known";
  if (s.optimizer != "SGD")
    return "the relation is derived for SGD; the optimizer is " + s.optimizer;
  if (s.nesterov) return "the relation is not derived for Nesterov momentum";
  if (!(s.weight_decay > 0)) return "no weight decay: the norm drifts forever";
  if (s.decoupled_weight_decay) return "weight decay is decoupled";
  if (!(s.learning_rate > 0)) return "the learning rate is 0";
  return {};
}

class FluctuationDissipation : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    weight_grad_ = context.column("weight_dot_grad", v1::SCOPE_PARAMETER);
    weight_ = context.column("weight_norm_sq", v1::SCOPE_PARAMETER);
    update_ = context.column("update_norm_sq", v1::SCOPE_PARAMETER);
    weight_update_ = context.column("weight_dot_update", v1::SCOPE_PARAMETER);
    while (series_.size() < static_cast<size_t>(context.model().parameter_size())) {
      series_.emplace_back(4);
    }
    applies_.resize(series_.size(), false);
    scope_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
    }
    invariant_.assign(series_.size(), false);
    if (context.structure() != nullptr) {
      for (const v1::SymmetryGroup& group : context.structure()->symmetry_group()) {
        if (group.kind() != "scale") continue;
        for (const uint32_t id : group.parameter()) {
          if (id < invariant_.size()) invariant_[id] = true;
        }
      }
    }
    settings_version_ = 0;
    changed_.begin(context);
  }

  void observe(const Frame& frame) override {
    changed_.observe(frame);
    if (frame.optimizer() == nullptr) return;
    if (frame.optimizer_version() != settings_version_) take_settings(frame);
    if (!any_applies_) return;
    const ColumnValues weight_grad = frame.column(weight_grad_);
    const ColumnValues weight = frame.column(weight_);
    const ColumnValues update = frame.column(update_);
    const ColumnValues weight_update = frame.column(weight_update_);
    if (!weight_grad.present || !weight.present || !update.present || !weight_update.present)
      return;
    double left = 0;
    double right = 0;
    double dot = 0;
    double square = 0;
    for (size_t i = 0; i < series_.size(); ++i) {
      if (!applies_[i]) continue;
      const ParameterSettings& s = series_[i].current().settings;
      const double o_left = weight_grad[i] + s.weight_decay * weight[i];
      const double o_right =
          (1 + s.momentum) / (2 * s.learning_rate * (1 - s.dampening)) * update[i];
      series_[i].pass(frame.step());
      series_[i].add({o_left, o_right, weight_update[i], update[i]}, frame.step());
      // Each parameter obeys the relation alone, so that one that was not observed may be left out.
      // Of scale-invariant weights it is a balance of norms, and says nothing of the loss.
      if (!std::isfinite(o_left + o_right + weight_update[i]) || (invariant_[i] && some_vary_))
        continue;
      left += o_left;
      right += o_right;
      dot += weight_update[i];
      square += update[i];
    }
    run_.pass(frame.step());
    run_.add({left, right, dot, square}, frame.step());
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    if (run_.best().begin < 0) {
      Finding finding = start_finding(law(), "run");
      if (!gate_.empty()) {
        set_not_applicable(finding, gate_);
      } else if (settings_version_ == 0) {
        set_no_settings(finding);
      } else {
        set_not_measured(finding, *context_,
                         "the weights' products with gradients and updates were",
                         {"weight_dot_grad"});
      }
      result.push_back(finding);
      return result;
    }
    result.push_back(judge_phase(run_.best(), "run"));
    for (size_t i = 0; i < series_.size(); ++i) {
      const Phase& phase = series_[i].best();
      if (phase.series.blocks().observations() > 0) result.push_back(judge_phase(phase, scope_[i]));
    }
    return result;
  }

 private:
  void take_settings(const Frame& frame) {
    settings_version_ = frame.optimizer_version();
    if (frame.optimizer()->optimizer() != "SGD") {
      any_applies_ = false;
      if (gate_.empty())
        gate_ = "derived for SGD; the optimizer is " + frame.optimizer()->optimizer();
      return;
    }
    const auto settings = settings_by_parameter(frame.optimizer(), series_.size());
    bool changed = applied_settings_.size() != settings.size();
    any_applies_ = false;
    gate_.clear();
    for (size_t i = 0; i < settings.size(); ++i) {
      const std::string reason = why_not(settings[i]);
      applies_[i] = reason.empty();
      any_applies_ = any_applies_ || applies_[i];
      if (gate_.empty() && settings[i].known) gate_ = reason;
      if (applies_[i]) series_[i].set_settings(settings[i], frame.step());
      changed = changed || settings[i] != applied_settings_[i];
    }
    some_vary_ = false;
    for (size_t i = 0; i < settings.size(); ++i)
      some_vary_ = some_vary_ || (applies_[i] && !invariant_[i]);
    applied_settings_ = settings;
    if (changed && any_applies_) run_.start_phase({}, frame.step());
  }

  Finding judge_phase(const Phase& phase, const std::string& scope) const {
    Finding finding = start_finding(law(), scope);
    finding.unit = "1";
    finding.predicted = 1;
    finding.evidence_statistic = "weight_dot_grad";
    const BlockAverages& blocks = phase.series.blocks();
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations()) + " at constant settings";
      return finding;
    }
    finding.window_begin = phase.series.window_begin();
    finding.window_end = phase.series.window_end();
    const Estimate ratio = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
    const Estimate rho = blocks.ratio({0, 0, -2, 0}, {0, 0, 0, 1});
    set_measured(finding, ratio);
    const Verdict verdict = judge(ratio, 1, kTolerance);
    const bool norm_at_rest = judge(rho, 1, kTolerance) == Verdict::kHolds;
    if (verdict == Verdict::kHolds) {
      set_verdict(finding, verdict);
      if (scope == "run" && !some_vary_) {
        finding.advice = fmt::format(
            "Since step {} weight decay and updates balance in weights that are all "
            "scale-invariant (left over right {}): their norms are stationary. This says "
            "nothing about the loss.",
            finding.window_begin, format_interval(ratio.value, ratio.low, ratio.high));
      } else if (scope == "run") {
        finding.importance = 0.7;
        finding.advice = fmt::format(
            "Since step {} training is stationary (left over right {}): at this learning rate "
            "the loss has reached its noise floor. Decay the learning rate, or stop.",
            finding.window_begin, format_interval(ratio.value, ratio.low, ratio.high));
      }
    } else if (const std::string changed = changed_.evidence();
               verdict == Verdict::kViolated && norm_at_rest && !changed.empty()) {
      set_not_applicable(finding, changed);
    } else if (verdict == Verdict::kViolated && norm_at_rest) {
      set_verdict(finding, verdict);
      finding.p_value = band_p_value(ratio, 1 / (1 + kTolerance), 1 + kTolerance);
      finding.advice =
          "The norm is stationary but the relation fails: the updates are not those of SGD on "
          "the observed gradients (are gradients changed after backward, or weights written by "
          "other code?).";
    } else if (verdict == Verdict::kViolated) {
      finding.gate = "not stationary yet: the weight norm still drifts";
    } else {
      set_verdict(finding, verdict);
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex weight_grad_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  ColumnIndex weight_update_ = kNoColumn;
  uint64_t settings_version_ = 0;
  bool any_applies_ = false;
  ChangedGradients changed_;
  std::string gate_;  // why the law does not apply, of the first parameter
  std::vector<ParameterSettings> applied_settings_;
  std::vector<bool> applies_;
  std::vector<bool> invariant_;  // scale-invariant, by parameter
  bool some_vary_ = true;        // a parameter to which the law applies is not
  std::vector<PhaseSeries> series_;
  PhaseSeries run_{4};  // sums over the parameters to which the law applies
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_fluctuation_dissipation() {
  return std::make_unique<FluctuationDissipation>();
}

}  // namespace tycho::analyzer
