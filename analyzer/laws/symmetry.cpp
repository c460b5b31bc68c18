// Level A of the symmetry laws: a loss that does not change under a continuous transformation of
// some parameters has a gradient with no component along it, for every batch and any optimizer. The
// probe records per group the residual |lhs - rhs| / (|lhs| + |rhs| + tiny), at each parameter the
// largest of the groups that contain it. Nothing is random here but rounding: no interval over
// steps is needed, and the tolerance depends on the number format.
#include <fmt/format.h>

#include <algorithm>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/identity_errors.h"

namespace tycho::analyzer {
namespace {

// What is left of the gradient of a cross-entropy when it is nearly zero is rounding of
// probabilities near one: of order epsilon over the loss, with room.
constexpr double kRoundingOverLoss = 50;
constexpr double kCoarsest = 0.1;  // relative residual below which something is tested

const LawDescription& law() {
  static const LawDescription description = {
      "symmetry",
      "Symmetry of the gradient",
      Line::kEmpiricalLaws,
      "translation: sum_k G[k,:] = 0; scale: <W,G> = 0; rescale: <w_in,G_in> = <w_out,G_out>; "
      "matrix, "
      "value-output and query-key: W_out^T G_out = G_in W_in^T",
      "The architecture has the symmetry (found by observing a forward pass); gradients before "
      "clipping, of a loss that depends only on the network's outputs",
      "A violation means that part of the gradient does not come through the layers as they are "
      "wired: a detached or frozen branch, tied weights, a loss that depends on weights or "
      "gradients",
      "Kunin et al. 2021, arXiv:2012.04728",
      {"symmetry_residual", "loss"},
      {"Normalisation with an epsilon is scale-invariant only up to epsilon over the variance."}};
  return description;
}

class Symmetry : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    column_ = context.column("symmetry_residual", v1::SCOPE_PARAMETER);
    loss_ = context.column("loss", v1::SCOPE_RUN);
    residuals_.resize(static_cast<size_t>(context.model().parameter_size()));
    scope_.clear();
    tolerance_.clear();
    epsilon_.clear();
    for (const v1::Parameter& parameter : context.model().parameter()) {
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
      tolerance_.push_back(IdentityErrors::tolerance(parameter.dtype()));
      epsilon_.push_back(IdentityErrors::epsilon(parameter.dtype()));
    }
    groups_.assign(residuals_.size(), "");
    translates_.assign(residuals_.size(), false);
    if (context.structure() == nullptr) return;
    for (const v1::SymmetryGroup& group : context.structure()->symmetry_group()) {
      for (const uint32_t id : group.parameter()) {
        translates_[id] = translates_[id] || group.kind() == "translation";
        std::string& text = groups_[id];
        if (!text.empty()) text += "; ";
        text += group.kind();
        if (!group.label().empty()) text += " (" + group.label() + ")";
      }
    }
  }

  void observe(const Frame& frame) override {
    const ColumnValues values = frame.column(column_);
    if (!values.present) return;
    const double loss = frame.column(loss_)[0];
    for (size_t i = 0; i < residuals_.size(); ++i) {
      double allowed = tolerance_[i];
      if (translates_[i] && loss > 0)
        allowed = std::max(allowed, kRoundingOverLoss * epsilon_[i] / loss);
      if (allowed <= kCoarsest) residuals_[i].add(values[i], allowed, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    size_t holding = 0;
    size_t violated = 0;
    size_t excused = 0;
    double largest = 0;
    for (size_t i = 0; i < residuals_.size(); ++i) {
      if (residuals_[i].observed() == 0) continue;
      result.push_back(judge_parameter(i));
      holding += result.back().verdict == Verdict::kHolds;
      violated += result.back().verdict == Verdict::kViolated;
      excused += result.back().verdict == Verdict::kNotApplicable;
      if (result.back().verdict == Verdict::kNotApplicable) continue;
      largest = std::max(largest, residuals_[i].largest());
    }
    Finding run = start_finding(law(), "run");
    run.unit = "1";
    run.predicted = 0;
    if (result.empty()) {
      if (context_->structure() != nullptr && context_->structure()->symmetry_group_size() == 0) {
        set_not_applicable(run, "no symmetry of the model was found");
      } else {
        set_not_measured(run, *context_, "the symmetry was", {"symmetry_residual"});
        run.predicted = kUnknown;
      }
    } else if (excused == result.size()) {
      set_not_applicable(run, other_part());
    } else {
      set_verdict(run, violated > 0                         ? Verdict::kViolated
                       : holding + excused == result.size() ? Verdict::kHolds
                                                            : Verdict::kUnderpowered);
      run.measured = largest;
      run.evidence_statistic = "symmetry_residual";
      run.window_begin = result.front().window_begin;
      run.window_end = result.front().window_end;
      run.gate =
          fmt::format("{} of {} parameters with a symmetry satisfy it", holding, result.size());
      if (excused > 0) run.gate += "; of the others, " + other_part();
      if (violated > 0) {
        run.advice =
            "Look at the parameters below: part of their gradient does not come through the "
            "layers as they are wired, or the loss depends on the weights directly.";
      }
    }
    result.insert(result.begin(), run);
    return result;
  }

 private:
  /// That gradients have a part which does not come through the layers, as a penalty on weights or
  /// gradients gives them one; empty: nothing says so. Seen where the gradients of the examples do
  /// not add up to the gradient.
  std::string other_part() const {
    for (const v1::Event& event : context_->events()) {
      if (event.message().find("do not add up") == std::string::npos) continue;
      return "gradients have a part that does not come through the layers (a penalty on weights or "
             "gradients?), and that part need not have the symmetry";
    }
    return "";
  }

  Finding judge_parameter(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    finding.evidence_statistic = "symmetry_residual";
    finding.evidence_level = tolerance_[i];
    residuals_[i].describe(finding);
    set_verdict(finding, residuals_[i].verdict());
    finding.gate = groups_[i].empty() ? law().assumptions : groups_[i];
    if (finding.verdict != Verdict::kHolds && !other_part().empty()) {
      set_not_applicable(finding, other_part());
      return finding;
    }
    if (finding.verdict == Verdict::kViolated) {
      finding.advice = fmt::format(
          "The gradient breaks the symmetry by {} (rounding allows {}): does the loss depend on "
          "weights or gradients (a penalty), is a branch detached or frozen, or are weights "
          "tied?",
          format_number(finding.measured), format_number(tolerance_[i]));
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex column_ = kNoColumn;
  ColumnIndex loss_ = kNoColumn;
  std::vector<IdentityErrors> residuals_;
  std::vector<std::string> scope_;
  std::vector<std::string> groups_;
  std::vector<double> tolerance_;
  std::vector<double> epsilon_;
  std::vector<bool> translates_;
};

}  // namespace

std::unique_ptr<Law> make_symmetry() { return std::make_unique<Symmetry>(); }

}  // namespace tycho::analyzer
