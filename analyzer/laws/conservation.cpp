// Level B of the symmetry laws: under SGD without momentum the quantity that a symmetry would
// conserve in gradient flow obeys an exact discrete balance at every step, for any batch. With f =
// 1 - eta lambda:
//   translation s' = f s;  scale |w|^2' = f^2 |w|^2 + eta^2 |g|^2;
//   rescale and matrix Q' = f^2 Q + eta^2 (|g_out|^2 - |g_in|^2).
// The probe records the relative error of the balance. With momentum or Adam nothing is predicted.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/changed_gradients.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/parameter_settings.h"
#include "src/statistics/identity_errors.h"

namespace tycho::analyzer {
namespace {

constexpr double kRoundingSigmas = 4;
constexpr double kCoarsest = 0.1;  // relative error below which something is tested

const LawDescription& law() {
  static const LawDescription description = {
      "conservation",
      "Balance of broken conservation laws",
      Line::kEmpiricalLaws,
      "scale: |w|^2' = (1-eta lambda)^2 |w|^2 + eta^2 |g|^2; rescale: Q' = (1-eta lambda)^2 Q + "
      "eta^2 "
      "(|g_out|^2 - |g_in|^2), Q = |w_out|^2 - |w_in|^2; translation: s' = (1-eta lambda) s",
      "SGD without momentum, with or without coupled weight decay; the architecture has the "
      "symmetry; "
      "gradients are not changed between backward and step",
      "A violation means that gradients do not have the symmetry of the architecture. If the "
      "optimizer's step is not the one that its settings and the gradients of backward give "
      "(clipping, other code that writes weights), there is nothing to test, and the gate says "
      "so",
      "Kunin et al. 2021, arXiv:2012.04728; discrete form exact",
      {"conservation_error", "grad_norm_sq", "update_norm_sq", "weight_norm_sq", "grad_dot_update",
       "weight_dot_grad", "weight_dot_update"},
      {}};
  return description;
}

class Conservation : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    column_ = context.column("conservation_error", v1::SCOPE_PARAMETER);
    errors_.resize(static_cast<size_t>(context.model().parameter_size()));
    applies_.resize(errors_.size(), false);
    scope_.clear();
    tolerance_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
      tolerance_.push_back(IdentityErrors::tolerance(parameter.dtype()));
    }
    settings_version_ = 0;
    changed_.begin(context);
    has_structure_ = context.structure() != nullptr;
    groups_ = has_structure_ ? context.structure()->symmetry_group_size() : 0;
  }

  void observe(const Frame& frame) override {
    changed_.observe(frame);
    if (frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      const auto settings = settings_by_parameter(frame.optimizer(), errors_.size());
      for (size_t i = 0; i < settings.size(); ++i) {
        applies_[i] = settings[i].optimizer == "SGD" && settings[i].momentum == 0;
        if (settings[i].known && !applies_[i] && gate_.empty()) {
          gate_ = settings[i].optimizer == "SGD"
                      ? "no balance is predicted with momentum"
                      : "no balance is predicted for " + settings[i].optimizer;
        }
      }
    }
    const ColumnValues values = frame.column(column_);
    if (!values.present) return;
    for (size_t i = 0; i < errors_.size(); ++i) {
      if (!applies_[i]) continue;
      // Where a step changes weights by little more than their rounding, nothing can be told.
      const double rounding = values.standard_error != nullptr ? values.standard_error[i] : 0;
      const double allowed =
          std::max(tolerance_[i], std::isfinite(rounding) ? kRoundingSigmas * rounding : 0);
      if (allowed > kCoarsest) {
        hidden_by_rounding_ = hidden_by_rounding_ || std::isfinite(values[i]);
        continue;
      }
      errors_[i].add(values[i], allowed, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    for (size_t i = 0; i < errors_.size(); ++i) {
      if (errors_[i].observed() > 0) result.push_back(judge_parameter(i));
    }
    if (result.empty()) {
      Finding finding = start_finding(law(), "run");
      if (hidden_by_rounding_) {
        set_not_applicable(finding, "the updates are too close to the rounding of the weights");
      } else if (!gate_.empty()) {
        set_not_applicable(finding, gate_);
      } else if (has_structure_ && groups_ == 0) {
        set_not_applicable(finding, "no symmetry of the model was found");
      } else {
        set_not_measured(finding, *context_, "the balance was", {"conservation_error"});
      }
      result.push_back(finding);
    }
    return result;
  }

 private:
  Finding judge_parameter(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    finding.evidence_statistic = "conservation_error";
    finding.evidence_level = tolerance_[i];
    errors_[i].describe(finding);
    set_verdict(finding, errors_[i].verdict());
    if (finding.verdict == Verdict::kViolated || finding.verdict == Verdict::kUnderpowered) {
      if (const std::string changed = changed_.evidence(); !changed.empty()) {
        set_not_applicable(finding, changed);
        return finding;
      }
      if (finding.verdict == Verdict::kViolated && !changed_.tested()) {
        set_verdict(finding, Verdict::kUnderpowered);
        finding.gate += "; whether gradients reach the optimizer unchanged was not recorded";
        return finding;
      }
    }
    if (finding.verdict == Verdict::kViolated) {
      finding.advice = fmt::format(
          "The optimizer takes the step that its settings say, but the balance fails (relative "
          "error {}, rounding allows {}): the gradients do not have the symmetry; see the "
          "symmetry of the gradient.",
          format_number(finding.measured), format_number(tolerance_[i]));
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex column_ = kNoColumn;
  uint64_t settings_version_ = 0;
  std::vector<bool> applies_;
  std::string gate_;
  ChangedGradients changed_;
  bool has_structure_ = false;
  int groups_ = 0;
  bool hidden_by_rounding_ = false;
  std::vector<IdentityErrors> errors_;
  std::vector<std::string> scope_;
  std::vector<double> tolerance_;
};

}  // namespace

std::unique_ptr<Law> make_conservation() { return std::make_unique<Conservation>(); }

}  // namespace tycho::analyzer
