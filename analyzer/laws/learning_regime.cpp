// In the lazy limit (wide in the standard parametrization, or a large output scale) the parameters
// move so little that the network stays its own linearization f_0 + J_0 (theta - theta_0): the
// tangent kernel K = JJ' does not change, S = 1 - <K_t, K_0>/(|K_t||K_0|) = 0, and neither does
// what the linearization leaves out, R = |f_t - f_0 - J_0 (theta_t - theta_0)|/|f_t - f_0| = 0. In
// the rich regime both are of the order of 1, and features are learned. A linear model has exactly
// 0 of both. Said is which it is, and which other laws go with it: the limit is a regime, not a
// virtue. All is lazy before anything was learned, so that the loss must have fallen.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kLazyResidual = 0.1;
constexpr double kLazyDistance = 0.05;
constexpr double kLeastFall = 0.1;  // of the loss, for something to have been learned
constexpr size_t kFewest = 3;       // observations
constexpr double kSeen = 0.8;       // of the fall of the loss, since the first observation
constexpr double kStartSteps = 3;   // whose mean loss is that of the start

const LawDescription& law() {
  static const LawDescription description = {
      "learning_regime",
      "Lazy or rich learning",
      Line::kSimplifyingLimits,
      "lazy: kernel distance S(0,t) = 0 and linearization residual R = 0 (taken as S < 0.05, R < "
      "0.1); rich otherwise; measured: R",
      "The network and the first observation's linearization on one probe batch; the loss has "
      "fallen by a tenth since",
      "Lazy: expect the behaviour of kernel regression: modes of the initial kernel, no learned "
      "features. To learn features, use a smaller output scale, smaller initial weights or the "
      "maximal-update parametrization. Rich: laws on features apply, and the initial kernel "
      "says nothing about what is learned",
      "Chizat, Oyallon and Bach 2019, arXiv:1812.07956; Fort et al. 2020, arXiv:2010.15110",
      {"kernel_distance", "linearization_residual", "feature_change_relative", "probe_loss",
       "loss"},
      {"There is no sharp border between the two limits: the numbers matter more than the label.",
       "The first observation counts as initialization, which is wrong for a resumed run."}};
  return description;
}

class LearningRegime : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    distance_ = context.column("kernel_distance", v1::SCOPE_RUN);
    residual_ = context.column("linearization_residual", v1::SCOPE_RUN);
    change_ = context.column("feature_change_relative", v1::SCOPE_LAYER);
    probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
    loss_ = context.column("loss", v1::SCOPE_RUN);
    scope_.clear();
    for (const v1::Layer& layer : context.model().layer())
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
  }

  void observe(const Frame& frame) override {
    const double loss = frame.column(probe_loss_)[0];
    if (std::isfinite(loss)) last_loss_ = loss;
    take_start(frame);
    if (const ColumnValues change = frame.column(change_); change.present)
      last_change_.assign(change.value, change.value + change.size);
    const double distance = frame.column(distance_)[0];
    const double residual = frame.column(residual_)[0];
    if (!std::isfinite(distance)) return;
    // Of the first observation the change is 0 and the residual 0/0.
    if (observations_++ == 0) {
      first_step_ = frame.step();
      first_loss_ = last_loss_;
    }
    last_distance_ = distance;
    if (std::isfinite(residual)) last_residual_ = residual;
    last_step_ = frame.step();
    loss_then_ = last_loss_;
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "linearization residual";
    finding.evidence_statistic = "linearization_residual";
    finding.predicted = 0;
    if (observations_ == 0) {
      set_not_measured(finding, *context_, "the tangent kernel was", {"kernel_distance"});
      finding.predicted = kUnknown;
      return {finding};
    }
    finding.window_begin = first_step_;
    finding.window_end = last_step_;
    finding.measured = last_residual_;
    if (observations_ < kFewest || !std::isfinite(last_residual_)) {
      finding.gate = only_observations(observations_) + " of the kernel";
      return {finding};
    }
    const double fall = 1 - loss_then_ / first_loss_;
    if (!(fall >= kLeastFall)) {
      finding.gate = std::isfinite(fall)
                         ? "the loss has not fallen by a tenth: nothing was learned in either "
                           "regime"
                         : "the probe loss is not known, so it is not known whether anything "
                           "was learned";
      return {finding};
    }
    label(&finding);
    return {finding};
  }

 private:
  /// The loss of the first steps, of batches where that is what was recorded.
  void take_start(const Frame& frame) {
    const double batch = frame.column(loss_)[0];
    const double loss = std::isfinite(batch) ? batch : frame.column(probe_loss_)[0];
    if (starts_ >= kStartSteps || !std::isfinite(loss)) return;
    start_loss_ = (start_loss_ * starts_ + loss) / (starts_ + 1);
    ++starts_;
  }

  /// The reference came when much had been learned: near it a network is linear in any regime.
  bool late() const {
    if (starts_ == 0 || !(start_loss_ > loss_then_)) return false;
    return (first_loss_ - loss_then_) / (start_loss_ - loss_then_) < kSeen;
  }

  void label(Finding* finding) const {
    const bool same_kernel = last_distance_ < kLazyDistance;
    const bool linear = last_residual_ < kLazyResidual;
    const std::string numbers =
        fmt::format("kernel distance {}, linearization residual {}{}",
                    format_number(last_distance_), format_number(last_residual_), most_changed());
    if ((same_kernel || linear) && late()) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = fmt::format(
          "the kernel was first observed at step {}, when the loss had fallen from {} to {}: {} "
          "since then",
          first_step_, format_number(start_loss_), format_number(first_loss_), numbers);
    } else if (same_kernel && linear) {
      set_verdict(*finding, Verdict::kHolds);
      finding->importance = 0.55;
      finding->gate = "lazy: " + numbers;
      finding->advice =
          "The network stays close to its linearization: it learns like kernel regression with "
          "its initial kernel, without features. To learn features, use a smaller output scale, "
          "smaller initial weights, or the maximal-update parametrization.";
    } else if (same_kernel || linear) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "between lazy and rich: " + numbers;
    } else {
      // The limit does not describe this run, which is no fault of it.
      set_verdict(*finding, Verdict::kNotApplicable);
      finding->importance = 0.5;
      finding->predicted = kUnknown;
      finding->gate = "rich; the lazy limit does not apply: " + numbers;
      finding->advice =
          "Features are learned: the kernel moved away from its start. Use the laws on "
          "features, not predictions from the initial kernel.";
    }
  }

  std::string most_changed() const {
    size_t most = scope_.size();
    for (size_t i = 0; i < std::min(last_change_.size(), scope_.size()); ++i) {
      if (!std::isfinite(last_change_[i])) continue;
      if (most == scope_.size() || last_change_[i] > last_change_[most]) most = i;
    }
    if (most == scope_.size()) return "";
    return fmt::format("; features change most in {}, by {} of their size", scope_[most],
                       format_number(last_change_[most]));
  }

  const RunContext* context_ = nullptr;
  ColumnIndex loss_ = kNoColumn;
  double start_loss_ = 0;
  double starts_ = 0;  // steps it is the mean of
  ColumnIndex distance_ = kNoColumn;
  ColumnIndex residual_ = kNoColumn;
  ColumnIndex change_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  uint64_t observations_ = 0;
  int64_t first_step_ = -1;
  int64_t last_step_ = -1;
  double first_loss_ = kUnknown;
  double loss_then_ = kUnknown;  // at the last observation of the kernel
  double last_loss_ = kUnknown;
  double last_distance_ = kUnknown;
  double last_residual_ = kUnknown;
  std::vector<double> last_change_;
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_learning_regime() { return std::make_unique<LearningRegime>(); }

}  // namespace tycho::analyzer
