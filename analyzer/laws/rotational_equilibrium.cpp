// Where the loss does not depend on the scale of w, gradients are orthogonal to w: updates make |w|
// grow, weight decay makes it shrink, and in equilibrium the angle per step depends on the settings
// only.
//
// SGD with momentum a, dampening d and coupled decay l: <w, g> = 0 in the fluctuation-dissipation
// relation (see fluctuation_dissipation.cpp) gives E|dw|^2/|w|^2 = 2 eta (1-d) l / (1+a), whatever
// the correlation of successive gradients. AdamW: a random walk of normalised updates with E|u|^2 =
// C (1-b1)/(1+b1) for C entries gives E angle^2 = 2 eta l (1-b1)/(1+b1); that needs updates
// dominated by noise, which the law checks by |dw|^2. Adam with coupled decay has no such number:
// the angle depends on the scale of the gradients.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/phase_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.05;       // of the RMS angle
constexpr double kRelaxationTimes = 3;    // to pass before measuring
constexpr double kNormTolerance = 0.1;    // of the norm's stationarity
constexpr double kNoiseTolerance = 0.15;  // of |dw|^2 against a random walk, AdamW

const LawDescription& law() {
  static const LawDescription description = {
      "rotational_equilibrium",
      "Rotational equilibrium",
      Line::kHyperparameters,
      "RMS angle per step: SGD sqrt(2 eta (1-dampening) lambda/(1+momentum)); AdamW sqrt(2 eta "
      "lambda "
      "(1-beta1)/(1+beta1))",
      "Scale-invariant weights (their symmetry group is in the model's structure); weight decay; "
      "constant "
      "learning rate for 3 relaxation times (SGD (1-momentum)/(4 eta lambda) steps, AdamW 1/(2 eta "
      "lambda)); AdamW: updates dominated by noise",
      "The product of learning rate and weight decay is the effective learning rate of such a "
      "layer: "
      "scaling the weights or the loss does not change it",
      "Wan et al. 2021, arXiv:2006.08419; Kosson et al. 2024, arXiv:2305.17212",
      {"angular_update", "weight_dot_update", "update_norm_sq", "weight_norm_sq", "grad_norm_sq",
       "grad_dot_update", "weight_dot_grad"},
      {"The angle of a matrix that is scale-invariant per channel is a root mean square over "
       "channels."}};
  return description;
}

struct Prediction {
  double angle_sq = 0;          // per step, rad^2
  double relaxation_steps = 0;  // of |w|^2
  std::string why_not;          // empty: the prediction exists
};

Prediction predict(const ParameterSettings& s) {
  Prediction prediction;
  const double product = s.learning_rate * s.weight_decay;
  if (!s.known) {
    prediction.why_not = "the optimizer's settings for this parameter are not known";
  } else if (!(product > 0)) {
    prediction.why_not = "no weight decay (or no learning rate): the norm only grows";
  } else if (s.optimizer == "SGD" && !s.nesterov && !s.decoupled_weight_decay) {
    const double effective = product * (1 - s.dampening);
    prediction.angle_sq = 2 * effective / (1 + s.momentum);
    prediction.relaxation_steps = (1 - s.momentum) / (4 * effective);
  } else if (s.is_adam() && s.decays_decoupled()) {
    prediction.angle_sq = 2 * product * (1 - s.beta1) / (1 + s.beta1);
    prediction.relaxation_steps = 1 / (2 * product);
  } else {
    prediction.why_not =
        "no prediction for this optimizer: known for SGD without Nesterov momentum and for AdamW";
  }
  return prediction;
}

class RotationalEquilibrium : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    angle_ = context.column("angular_update", v1::SCOPE_PARAMETER);
    dot_ = context.column("weight_dot_update", v1::SCOPE_PARAMETER);
    update_ = context.column("update_norm_sq", v1::SCOPE_PARAMETER);
    norm_ = context.column("weight_norm_sq", v1::SCOPE_PARAMETER);
    changed_.begin(context);
    structure_known_ = context.structure() != nullptr;
    while (series_.size() < static_cast<size_t>(context.model().parameter_size())) {
      series_.emplace_back(4);
    }
    scope_.clear();
    elements_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
      elements_.push_back(static_cast<double>(parameter.element_count()));
    }
    invariant_.clear();
    if (context.structure() != nullptr) {
      for (const v1::SymmetryGroup& group : context.structure()->symmetry_group()) {
        if (group.kind() != "scale") continue;
        for (const uint32_t id : group.parameter()) {
          const v1::Parameter& parameter = context.model().parameter(static_cast<int>(id));
          // A bias in the group is scale-invariant together with its weight only.
          if (parameter.shape_size() >= 2) invariant_.push_back(id);
        }
      }
    }
    std::sort(invariant_.begin(), invariant_.end());
    invariant_.erase(std::unique(invariant_.begin(), invariant_.end()), invariant_.end());
    settings_version_ = 0;
  }

  void observe(const Frame& frame) override {
    changed_.observe(frame);
    if (invariant_.empty() || frame.optimizer() == nullptr) return;
    if (frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      const auto settings = settings_by_parameter(frame.optimizer(), series_.size());
      warm_from_.resize(series_.size());
      for (const uint32_t id : invariant_) {
        series_[id].set_settings(settings[id], frame.step());
        const Prediction prediction = predict(settings[id]);
        warm_from_[id] =
            static_cast<double>(series_[id].current().begin) +
            (prediction.why_not.empty() ? kRelaxationTimes * prediction.relaxation_steps
                                        : Estimate::kInfinity);
      }
    }
    const ColumnValues angle = frame.column(angle_);
    const ColumnValues dot = frame.column(dot_);
    const ColumnValues update = frame.column(update_);
    const ColumnValues norm = frame.column(norm_);
    for (const uint32_t id : invariant_) {
      series_[id].pass(frame.step());
      if (!angle.present || static_cast<double>(frame.step()) < warm_from_[id]) continue;
      // The prediction is of means: E angle^2 |w|^2 = E |dw|^2 over E |w|^2. The mean of angle^2 is
      // larger where the norm fluctuates.
      series_[id].add({angle[id] * angle[id] * norm[id], norm[id], dot[id], update[id]},
                      frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    for (const uint32_t id : invariant_) result.push_back(judge_parameter(id));
    if (result.empty()) {
      Finding finding = start_finding(law(), "run");
      if (structure_known_) {
        set_not_applicable(finding, "no weights were found to be scale-invariant");
      } else {
        set_verdict(finding, Verdict::kNotMeasured);
        finding.gate =
            "which weights are scale-invariant is not known: no step was observed with "
            "hooks (the statistics of preset standard install them)";
      }
      result.push_back(finding);
    }
    return result;
  }

 private:
  Finding judge_parameter(uint32_t id) const {
    const Phase& phase = series_[id].best();
    Finding finding = start_finding(law(), scope_[id]);
    finding.unit = "rad";
    finding.evidence_statistic = "angular_update";
    const Prediction prediction = predict(phase.settings);
    if (!phase.settings.known) {
      set_no_settings(finding);
      return finding;
    }
    if (!prediction.why_not.empty()) {
      set_not_applicable(finding, prediction.why_not);
      return finding;
    }
    if (!context_->recorded("angular_update")) {
      set_not_measured(finding, *context_, "the angles of the updates were", {"angular_update"});
      return finding;
    }
    finding.predicted = std::sqrt(prediction.angle_sq);
    finding.evidence_level = finding.predicted;
    const BlockAverages& blocks = phase.series.blocks();
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = fmt::format(
          "not in equilibrium: constant settings for {} steps, {} are needed (3 relaxation times)",
          phase.steps(), format_number(kRelaxationTimes * prediction.relaxation_steps));
      finding.advice = fmt::format(
          "Weight decay acts over {} steps here: with fewer steps at this learning rate it has "
          "little effect.",
          format_number(prediction.relaxation_steps));
      return finding;
    }
    finding.window_begin = phase.series.window_begin();
    finding.window_end = phase.series.window_end();
    // Both the norm and the velocity remember: white noise on each step hides it from the blocks.
    const double memory =
        std::max(prediction.relaxation_steps,
                 phase.settings.is_adam() ? 0 : 1 / (1 - phase.settings.momentum));
    const double cadence = steps_between(phase.series.window_begin(), phase.series.window_end()) *
                           2 / static_cast<double>(blocks.observations());
    const double correlation_time = memory / std::max(1.0, cadence);
    const Estimate angle_sq = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0}, 0.95, correlation_time);
    if (angle_sq.blocks < BlockAverages::kMinBlocks) {
      finding.gate = fmt::format(
          "the norm and the velocity have a memory of {} steps, and fewer than 8 times as many "
          "are observed",
          format_number(memory));
      return finding;
    }
    finding.measured = std::sqrt(angle_sq.value);
    finding.ci_low = std::sqrt(std::max(0.0, angle_sq.low));
    finding.ci_high = std::sqrt(std::max(0.0, angle_sq.high));
    const Estimate rho = blocks.ratio({0, 0, -2, 0}, {0, 0, 0, 1});
    const auto [least, most] = blocks.range_of_ratio({0, 0, -2, 0}, {0, 0, 0, 1});
    if (judge(rho, 1, kNormTolerance) == Verdict::kViolated || most < 1 / (1 + kNormTolerance) ||
        least > 1 + kNormTolerance) {
      finding.gate = fmt::format("the norm is still {}: -2<w.dw>/<|dw|^2> = {}",
                                 rho.value < 1 ? "growing" : "shrinking",
                                 format_interval(rho.value, rho.low, rho.high));
      return finding;
    }
    if (phase.settings.is_adam()) {
      const double k = (1 - phase.settings.beta1) / (1 + phase.settings.beta1);
      const double eta = phase.settings.learning_rate;
      const double noise_ratio = blocks.mean({0, 0, 0, 1}).value / (eta * eta * elements_[id] * k);
      if (noise_ratio > 0 &&
          (noise_ratio > 1 + kNoiseTolerance || noise_ratio < 1 / (1 + kNoiseTolerance))) {
        set_verdict(finding, Verdict::kNotApplicable);
        finding.gate = fmt::format(
            "updates are not dominated by independent noise: |dw|^2 is {} times that of a random "
            "walk",
            format_number(noise_ratio));
        return finding;
      }
    }
    const double factor = (1 + kTolerance) * (1 + kTolerance);
    set_verdict(finding, judge(angle_sq, prediction.angle_sq, factor - 1));
    if (const std::string changed = changed_.evidence();
        finding.verdict == Verdict::kViolated && !changed.empty() && !phase.settings.is_adam()) {
      set_not_applicable(finding, changed);
      return finding;
    }
    finding.p_value =
        band_p_value(angle_sq, prediction.angle_sq / factor, prediction.angle_sq * factor);
    if (finding.verdict == Verdict::kHolds) {
      finding.advice = fmt::format(
          "In equilibrium: {} rad per step, set by learning rate x weight decay alone; to "
          "rotate faster or slower by a factor f, change that product by f^2.",
          format_number(finding.measured));
    } else if (finding.verdict == Verdict::kViolated) {
      finding.advice = fmt::format(
          "Rotates {} rad per step instead of the predicted {}, with a stationary norm: the "
          "update is not what the settings say (a second decay?), or the weights are not "
          "scale-invariant.",
          format_number(finding.measured), format_number(finding.predicted));
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex angle_ = kNoColumn;
  ColumnIndex dot_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  ColumnIndex norm_ = kNoColumn;
  bool structure_known_ = false;
  ChangedGradients changed_;
  uint64_t settings_version_ = 0;
  std::vector<uint32_t> invariant_;
  std::vector<PhaseSeries> series_;  // by parameter
  std::vector<double> warm_from_;    // by parameter: first step in equilibrium
  std::vector<std::string> scope_;
  std::vector<double> elements_;
};

}  // namespace

std::unique_ptr<Law> make_rotational_equilibrium() {
  return std::make_unique<RotationalEquilibrium>();
}

}  // namespace tycho::analyzer
