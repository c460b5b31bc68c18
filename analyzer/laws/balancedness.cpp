// Of consecutive linear maps V W gradient flow conserves D = V'V - W W', because V'G_V = G_W W'
// (Arora, Cohen and Hazan 2018): from small weights, which are nearly balanced, layers stay so. A
// step of gradient descent changes D by eta^2 (G_V'G_V - G_W G_W'), which adds up for long steps.
// Recorded is |D|_F/(|V|_F^2 + |W|_F^2); with the squared norms of the weights |D|_F is known, and
// what was there at first is compared with what is there now, in units of the weights of now.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "laws/linear_network.h"
#include "src/statistics/identity_errors.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.05;  // of |V|^2 + |W|^2

const LawDescription& law() {
  static const LawDescription description = {
      "balancedness",
      "Balance of linear layers",
      Line::kSolvableSettings,
      "|V'V - W W'|_F constant for consecutive linear maps V W; measured: its change over |V|_F^2 "
      "+ "
      "|W|_F^2",
      "Gradient descent without momentum and weight decay, in steps short enough for the flow; no "
      "nonlinearity between the layers",
      "Layers that stay balanced share the growth of every mode, which the theory of deep "
      "linear networks assumes. A change means that steps are long, or are not plain descent",
      "Arora, Cohen and Hazan 2018, arXiv:1802.06509; Du, Hu and Lee 2018, arXiv:1806.00900",
      {"balance_residual", "weight_norm_sq"},
      {"Only the norm of V'V - W W' is compared, so a change of the matrix at constant norm is "
       "not seen."}};
  return description;
}

class Balancedness : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    residual_ = context.column("balance_residual", v1::SCOPE_LAYER);
    norm_ = context.column("weight_norm_sq", v1::SCOPE_LAYER);
    const auto count = static_cast<size_t>(context.model().layer_size());
    errors_.resize(count);
    first_.resize(count, kUnknown);
    last_.resize(count, kUnknown);
    scope_.clear();
    matrix_.assign(count, false);
    for (const v1::Layer& layer : context.model().layer()) {
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
      for (const uint32_t id : layer.parameter()) {
        if (context.model().parameter(static_cast<int>(id)).shape_size() == 2)
          matrix_[layer.id()] = true;
      }
    }
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      why_not_ = why_no_gradient_flow(frame.optimizer(), false);
    }
    const ColumnValues residual = frame.column(residual_);
    if (!residual.present) return;
    measured_ = true;
    const ColumnValues norm = frame.column(norm_);
    if (!norm.present) return;
    for (size_t i = 0; i < errors_.size(); ++i) {
      // Norms are those before the step: a small step off.
      const double scale = norm[i] + norm[next_matrix(i)];
      const double imbalance = residual[i] * scale;
      if (!std::isfinite(imbalance) || !(scale > 0)) continue;
      if (std::isnan(first_[i])) {
        first_[i] = imbalance;
        continue;
      }
      errors_[i].add(std::fabs(imbalance - first_[i]) / scale, kTolerance, frame.step());
      last_[i] = residual[i];
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    Finding run = start_finding(law(), "run");
    run.evidence_statistic = "balance_residual";
    if (settings_version_ > 0 && !why_not_.empty()) {
      set_not_applicable(run, why_not_);
      return {run};
    }
    if (!measured_) {
      explain_missing_modes(run, *context_);
      return {run};
    }
    if (settings_version_ == 0) {
      set_no_settings(run);
      return {run};
    }
    size_t holding = 0;
    size_t violated = 0;
    for (size_t i = 0; i < errors_.size(); ++i) {
      if (errors_[i].observed() == 0) continue;
      result.push_back(judge_layer(i));
      holding += result.back().verdict == Verdict::kHolds;
      violated += result.back().verdict == Verdict::kViolated;
      if (!(run.measured >= result.back().measured)) errors_[i].describe(run);
    }
    if (result.empty()) {
      if (context_->recorded("weight_norm_sq")) {
        run.gate = "only one observation";
      } else {
        set_not_measured(run, *context_, "the norms of the weights were", {"weight_norm_sq"});
      }
      return {run};
    }
    run.unit = "of |V|^2 + |W|^2";
    set_verdict(run, violated > 0               ? Verdict::kViolated
                     : holding == result.size() ? Verdict::kHolds
                                                : Verdict::kUnderpowered);
    run.gate = fmt::format("{} of {} pairs of layers keep their balance", holding, result.size());
    if (violated > 0) {
      run.importance = 0.55;
      run.advice =
          "The balance of linear layers changes: the steps are too long for gradient flow, or are "
          "not plain gradient descent (noise adds to it slowly).";
    }
    result.insert(result.begin(), run);
    return result;
  }

 private:
  size_t next_matrix(size_t i) const {
    for (size_t k = i + 1; k < matrix_.size(); ++k) {
      if (matrix_[k]) return k;
    }
    return matrix_.size();  // reads as NaN
  }

  Finding judge_layer(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    finding.evidence_statistic = "balance_residual";
    errors_[i].describe(finding);
    finding.unit = "of |V|^2 + |W|^2";
    set_verdict(finding, errors_[i].verdict());
    finding.gate =
        fmt::format("imbalance with the following layer: {} of the squared norms{}",
                    format_number(last_[i]), last_[i] < kTolerance ? ", which is balanced" : "");
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex residual_ = kNoColumn;
  ColumnIndex norm_ = kNoColumn;
  bool measured_ = false;
  uint64_t settings_version_ = 0;
  std::string why_not_;
  std::vector<IdentityErrors> errors_;
  std::vector<double> first_;  // |D| at the first observation
  std::vector<double> last_;   // recorded last, relative
  std::vector<std::string> scope_;
  std::vector<bool> matrix_;
};

}  // namespace

std::unique_ptr<Law> make_balancedness() { return std::make_unique<Balancedness>(); }

}  // namespace tycho::analyzer
