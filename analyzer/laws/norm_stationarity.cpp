// |w + dw|^2 - |w|^2 = 2 <w, dw> + |dw|^2 exactly, so that a norm at rest has
// rho = -2 <w.dw> / <|dw|^2> = 1; rho < 1: growing, rho > 1: shrinking. A norm that moves is no
// violation of anything: the law then says NOT_YET.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/phase_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.1;

const LawDescription& law() {
  static const LawDescription description = {
      "norm_stationarity",
      "Stationarity of the weight norm",
      Line::kEmpiricalLaws,
      "rho = -2<w.dw>/<|dw|^2> = 1 if |w| is stationary; below 1 it grows, above 1 it shrinks",
      "Weight decay acts on the parameter; constant learning rate",
      "A growing norm at a constant learning rate is a slow decay of the effective learning "
      "rate; a stationary norm means that weight decay and updates balance",
      "Wan et al. 2021, arXiv:2006.08419; identity exact",
      {"weight_dot_update", "update_norm_sq"},
      {}};
  return description;
}

class NormStationarity : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    dot_ = context.column("weight_dot_update", v1::SCOPE_PARAMETER);
    update_ = context.column("update_norm_sq", v1::SCOPE_PARAMETER);
    while (series_.size() < static_cast<size_t>(context.model().parameter_size())) {
      series_.emplace_back(2);
    }
    scope_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
    }
    settings_version_ = 0;
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() == nullptr) return;
    if (frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      const auto settings = settings_by_parameter(frame.optimizer(), series_.size());
      for (size_t i = 0; i < series_.size(); ++i)
        series_[i].set_settings(settings[i], frame.step());
    }
    const ColumnValues dot = frame.column(dot_);
    const ColumnValues update = frame.column(update_);
    if (!dot.present || !update.present) return;
    for (size_t i = 0; i < series_.size(); ++i) {
      // Without decay nothing holds the norm: the law is not applicable and costs nothing.
      if (!(series_[i].current().settings.weight_decay > 0)) continue;
      series_[i].pass(frame.step());
      series_[i].add({dot[i], update[i]}, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    bool any_decay = false;
    for (size_t i = 0; i < series_.size(); ++i) {
      const Phase& phase = series_[i].best();
      if (!(phase.settings.weight_decay > 0)) continue;
      any_decay = true;
      result.push_back(judge_parameter(phase, scope_[i]));
    }
    if (!any_decay) {
      Finding finding = start_finding(law(), "run");
      if (settings_version_ == 0) {
        set_no_settings(finding);
      } else {
        set_not_applicable(finding, "no weight decay: nothing limits the norms");
      }
      result.push_back(finding);
    }
    return result;
  }

 private:
  static Finding judge_parameter(const Phase& phase, const std::string& scope) {
    Finding finding = start_finding(law(), scope);
    finding.unit = "1";
    finding.predicted = 1;
    finding.evidence_statistic = "weight_norm_sq";
    const BlockAverages& blocks = phase.series.blocks();
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations()) + " at constant settings";
      return finding;
    }
    finding.window_begin = phase.series.window_begin();
    finding.window_end = phase.series.window_end();
    const Estimate rho = blocks.ratio({-2, 0}, {0, 1});
    set_measured(finding, rho);
    const Verdict verdict = judge(rho, 1, kTolerance);
    // A ratio that changes has no interval; one that lies on one side all the time needs none.
    const auto [least, most] = blocks.range_of_ratio({-2, 0}, {0, 1});
    const bool drifts =
        verdict == Verdict::kViolated || most < 1 / (1 + kTolerance) || least > 1 + kTolerance;
    if (drifts) {
      set_verdict(finding, Verdict::kNotYet);
      finding.gate = fmt::format("the norm is still {} at constant settings",
                                 rho.value < 1 ? "growing" : "shrinking");
    } else {
      set_verdict(finding, verdict);
    }
    return finding;
  }

  ColumnIndex dot_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  uint64_t settings_version_ = 0;
  std::vector<PhaseSeries> series_;
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_norm_stationarity() { return std::make_unique<NormStationarity>(); }

}  // namespace tycho::analyzer
