// For a mean loss over B independent examples E|g_B|^2 = |G|^2 + tr(Sigma)/B, so that
// B_simple = tr(Sigma)/|G|^2 is the batch size at which noise and signal are equal. It is that of
// now, as the probe recorded it last: the ratio of the means of unbiased estimates of tr(Sigma) and
// |G|^2, over a window that ends where the gradient's scale changed (tycho/trace/noise_pool.h). The
// law says the number of the chart and of the export, and no other.
//
// What can fail: all of this takes the examples of a batch for independent. Copies, clusters and
// sorted data are not, and no estimate of tr(Sigma) from within a batch can see it. Three tests:
// - copies have the same gradient (distinct_examples);
// - the gradients of two batches at the same weights must lie as far apart as tr(Sigma) from within
//   a batch says (between_batch_trace over within_batch_trace). These are batches in a row: sorted
//   data whose order lasts for many batches pass;
// - where these were not recorded: tr(Sigma) is a property of single examples and must not depend
//   on the batch size. Whenever the run used two (the last batch of an epoch, a batch schedule),
//   estimates at one are compared with those next to them at the other.
// With none of them the identity is satisfied by construction, so the verdict is UNDERPOWERED and
// the number is an estimate.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/noise_scale_series.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.15;         // of tr(Sigma) between batch sizes
constexpr double kDistinctBatches = 1.5;    // batch sizes closer than this test nothing
constexpr double kBetweenTolerance = 0.25;  // of tr(Sigma) between batches, over that within
constexpr double kDistinct = 0.9;      // of the examples of a batch: with fewer, there are copies
constexpr uint64_t kFewestCounts = 3;  // observations of the number of distinct examples
constexpr uint64_t kLongRun = 8;       // observations in a row that make another size the main one
constexpr double kFarFactor = 4;       // beyond it the advice calls the batch small or large
constexpr double kAlarmFactor = 16;  // batches so much larger raise an alarm while the run goes on

const LawDescription& law() {
  static const LawDescription description = {
      "gradient_noise_scale",
      "Gradient noise scale",
      Line::kHyperparameters,
      "E|g_B|^2 = |G|^2 + tr(Sigma)/B;  B_simple = tr(Sigma)/|G|^2;  progress of a step relative "
      "to "
      "the largest possible = 1/(1 + B_simple/B)",
      "Mean loss over independent examples (no BatchNorm); gradients before clipping and weight "
      "decay; "
      "progress formula: best step size on a local quadratic with a Hessian proportional to the "
      "identity",
      "Below the noise scale a larger batch needs almost proportionally fewer steps; above it, "
      "extra "
      "examples are mostly wasted",
      "McCandlish, Kaplan, Amodei et al. 2018, arXiv:1812.06162",
      {"grad_noise_trace", "grad_signal_sq", "noise_scale", "noise_scale_low", "noise_scale_high",
       "batch_size", "between_batch_trace", "within_batch_trace", "distinct_examples"},
      {"B_simple agrees with the critical batch size to an order of magnitude only (McCandlish et "
       "al., "
       "table 1: ratios from 0.05 to 8).",
       "For language models trained with Adam it underestimated the critical batch size by orders "
       "of "
       "magnitude (Merrill et al. 2025, arXiv:2505.23971): verify by branching the run at k times "
       "the "
       "batch and sqrt(k) times the learning rate.",
       "Tokens of one sequence are not independent: an example is a sequence. Dropout counts as "
       "noise.",
       "Independence is tested within a batch and between two successive batches. Sorted data, in "
       "which many successive batches are alike, pass the test: shuffle them."}};
  return description;
}

/// tr(Sigma) at one batch size against the mean of its neighbours in time on both sides at another:
/// pairs (other, main). A drift cancels to first order.
class BatchSizeTest {
 public:
  void add(double batch, double trace, int64_t step) {
    if (!std::isfinite(trace) || !(batch > 0)) return;
    if (main_batch_ <= 0) main_batch_ = batch;
    if (batch == main_batch_) {
      (pending_ ? after_ : before_).add(trace);
      other_run_ = 0;
      return;
    }
    const double factor = std::max(batch, main_batch_) / std::min(batch, main_batch_);
    if (factor >= kDistinctBatches && (pending_ ? after_ : before_).count > 0) {
      if (pending_) {
        pairs_.add({other_, 0.5 * (before_.mean() + after_.mean())}, step);
        before_ = after_;
      }
      other_ = trace;
      other_batch_ = batch;
      tested_batch_ = main_batch_;
      pending_ = true;
      after_ = {};
    }
    if (batch != run_batch_) other_run_ = 0;
    run_batch_ = batch;
    if (++other_run_ < kLongRun) return;
    main_batch_ = batch;
    before_ = after_ = {};
    pending_ = false;
  }

  bool any() const { return pairs_.blocks().observations() > 0; }
  /// Of m-fold examples in each batch the estimate is (B-m)/(B-1) times tr(Sigma): whether these
  /// two batch sizes would have shown pairs.
  bool sees_pairs() const {
    const auto share = [](double batch) { return (batch - 2) / (batch - 1); };
    const double smaller = std::min(other_batch_, tested_batch_);
    const double larger = std::max(other_batch_, tested_batch_);
    return share(smaller) * (1 + kTolerance) < share(larger);
  }
  Estimate ratio() const { return pairs_.blocks().ratio({1, 0}, {0, 1}); }
  std::string describe(const Estimate& ratio) const {
    return fmt::format("tr(Sigma) at batch {} over that at batch {}: {} (predicted 1)",
                       format_number(other_batch_), format_number(tested_batch_),
                       format_interval(ratio.value, ratio.low, ratio.high));
  }

 private:
  struct Mean {
    double sum = 0;
    double count = 0;
    void add(double value) {
      sum += value;
      count += 1;
    }
    double mean() const { return sum / count; }
  };

  double main_batch_ = 0;
  Mean before_;  // at the main batch size, before the other
  Mean after_;
  double other_ = 0;
  bool pending_ = false;  // `other_` waits for what comes after it
  double run_batch_ = 0;
  uint64_t other_run_ = 0;
  double other_batch_ = 0;
  double tested_batch_ = 0;
  RecentHalf pairs_{2};
};

/// tr(Sigma) from the distance of the gradients of two batches, over that from the examples within.
class BetweenBatchesTest {
 public:
  void add(double between, double within, int64_t step) {
    if (std::isfinite(between + within)) series_.add({between, within}, step);
  }
  bool any() const { return series_.blocks().observations() >= BlockAverages::kMinBlocks; }
  Estimate ratio() const { return series_.blocks().ratio({1, 0}, {0, 1}); }

 private:
  RecentHalf series_{2};
};

struct NoiseSeries {
  NoiseScaleSeries scale;
  RecentHalf batch{1};
  BatchSizeTest test;
  BetweenBatchesTest between;
};

/// Columns of the probe between_batches.
struct DistanceColumns {
  ColumnIndex between = kNoColumn;
  ColumnIndex within = kNoColumn;
  static DistanceColumns of(const RunContext& context, v1::Scope scope) {
    return {context.column("between_batch_trace", scope),
            context.column("within_batch_trace", scope)};
  }
};

class GradientNoiseScale : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    batch_size_ = context.column("batch_size", v1::SCOPE_RUN);
    context_ = &context;
    run_columns_ = NoiseColumns::of(context, v1::SCOPE_RUN);
    layer_columns_ = NoiseColumns::of(context, v1::SCOPE_LAYER);
    run_distances_ = DistanceColumns::of(context, v1::SCOPE_RUN);
    layer_distances_ = DistanceColumns::of(context, v1::SCOPE_LAYER);
    distinct_column_ = context.column("distinct_examples", v1::SCOPE_RUN);
    const size_t layers = static_cast<size_t>(context.model().layer_size());
    layers_.resize(layers);
    layer_scope_.clear();
    batch_norm_.clear();
    counts_ = 0;
    distinct_ = 0;
    adam_ = context.run().optimizer().rfind("Adam", 0) == 0;
    for (size_t i = 0; i < layers; ++i) {
      layer_scope_.push_back(context.scope_name(v1::SCOPE_LAYER, static_cast<uint32_t>(i)));
      const v1::Layer& layer = context.model().layer(static_cast<int>(i));
      if (layer.type().find("BatchNorm") != std::string::npos) batch_norm_ = layer.path();
    }
  }

  void observe(const Frame& frame) override {
    const double batch = frame.column(batch_size_)[0];
    observe_series(frame, run_columns_, 0, batch, run_);
    observe_distances(frame, run_distances_, 0, run_.between);
    if (frame.column(distinct_column_).present) {
      const double distinct = frame.column(distinct_column_)[0];
      if (std::isfinite(distinct)) {
        ++counts_;
        distinct_ = std::max(distinct_, distinct);
      }
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (frame.column(layer_columns_.trace).present)
        observe_series(frame, layer_columns_, i, batch, layers_[i]);
      observe_distances(frame, layer_distances_, i, layers_[i].between);
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    result.push_back(judge_series(run_, "run"));
    if (!batch_norm_.empty()) return result;
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].scale.observations() > 0)
        result.push_back(judge_series(layers_[i], layer_scope_[i]));
    }
    return result;
  }

 private:
  static void observe_series(const Frame& frame, const NoiseColumns& columns, size_t entity,
                             double batch, NoiseSeries& series) {
    if (!series.scale.observe(frame, columns, entity)) return;
    series.batch.add({batch}, frame.step());
    series.test.add(batch, frame.column(columns.trace)[entity], frame.step());
  }

  static void observe_distances(const Frame& frame, const DistanceColumns& columns, size_t entity,
                                BetweenBatchesTest& test) {
    if (!frame.column(columns.between).present) return;
    test.add(frame.column(columns.between)[entity], frame.column(columns.within)[entity],
             frame.step());
  }

  Finding judge_series(const NoiseSeries& series, const std::string& scope) const {
    Finding finding = start_finding(law(), scope);
    finding.unit = "examples";
    finding.evidence_statistic = "noise_scale";
    if (!batch_norm_.empty()) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate = "BatchNorm (" + batch_norm_ +
                     ") couples the examples of a batch: gradients of single examples, and their "
                     "noise, do not exist";
      return finding;
    }
    if (series.scale.observations() == 0) {
      set_not_measured(finding, *context_, "the gradient noise was", {"grad_noise_trace"});
      return finding;
    }
    const trace::PooledNoiseScale scale = series.scale.now();
    finding.window_begin = scale.begin;
    finding.window_end = scale.end;
    if (std::isnan(scale.low)) {
      finding.gate = only_observations(series.scale.observations()) + " of the gradient noise";
      return finding;
    }
    finding.measured = scale.value;
    finding.ci_low = scale.low;
    finding.ci_high = scale.high;
    const double batch = series.batch.blocks().mean({1}).value;
    judge_independence(finding, series);
    if (const auto part = series.scale.part()) {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.p_value = kUnknown;
      finding.gate = describe_part(*part, scope == "run" ? "run" : "layer");
    }
    finding.gate += fmt::format("; pooled over the last {} observations{}", scale.observations,
                                std::isnan(scale.value) && !series.scale.part()
                                    ? ", which do not tell the noise scale within a factor of ten"
                                    : "");
    if (finding.verdict == Verdict::kViolated) {
      finding.advice =
          "The examples of a batch are not independent (copies, clusters, or sorted data?), so "
          "they do not measure the noise of a step. Shuffle the data, remove copies, and do not "
          "choose a batch size from these gradients.";
      // No number: it rests on independence.
      finding.measured = finding.ci_low = finding.ci_high = kUnknown;
      return finding;
    }
    advise(finding, batch);
    return finding;
  }

  /// Verdict, gate and p-value, by the first of the tests that there is.
  void judge_independence(Finding& finding, const NoiseSeries& series) const {
    if (counts_ >= kFewestCounts && distinct_ < kDistinct) {
      set_verdict(finding, Verdict::kViolated);
      finding.gate = fmt::format(
          "at most {:.0f} % of the examples of a batch have a distinct gradient: the others are "
          "copies of them",
          100 * distinct_);
      return;
    }
    if (series.between.any()) {
      judge_distances(finding, series.between);
      return;
    }
    const Estimate test = series.test.ratio();
    if (series.test.any() && test.reliable) {
      set_verdict(finding, judge(test, 1, kTolerance));
      finding.p_value = band_p_value(test, 1 / (1 + kTolerance), 1 + kTolerance);
      finding.gate = series.test.describe(test);
      if (finding.verdict == Verdict::kHolds && !series.test.sees_pairs()) {
        set_verdict(finding, Verdict::kUnderpowered);
        finding.gate += ", as it would be at such large batch sizes if each example occurred twice";
      }
    } else {
      set_verdict(finding, Verdict::kUnderpowered);
      finding.gate =
          "an estimate: independence of the examples of a batch could not be tested, because "
          "there were neither two batches at the same weights (between_batch_trace) nor two "
          "batch sizes";
    }
  }

  static void judge_distances(Finding& finding, const BetweenBatchesTest& between) {
    constexpr double kLow = 1 / (1 + kBetweenTolerance);
    constexpr double kHigh = 1 + kBetweenTolerance;
    const Estimate ratio = between.ratio();
    finding.gate = fmt::format(
        "tr(Sigma) from the distance between the gradients of two batches, over that from the "
        "examples within one: {} (predicted 1)",
        format_interval(ratio.value, ratio.low, ratio.high));
    set_verdict(finding, judge_band(ratio, kLow, kHigh));
    if (finding.verdict != Verdict::kViolated) return;
    if (ratio.low > kHigh) {
      finding.p_value = band_p_value(ratio, kLow, kHigh);
      return;
    }
    set_verdict(finding, Verdict::kUnderpowered);
    finding.gate +=
        ": batches are more alike than independent examples would be (the same examples at "
        "every step, or stratified sampling), so a step has less noise than this";
  }

  /// What is known is a part, and is given as one.
  std::string describe_part(const NoiseScaleSeries::Part& part, const char* whole) const {
    std::string text = fmt::format(
        "noise is observed for only a part of the parameters, which has {:.3g} % of the squared "
        "gradient norm at step {} ({})",
        100 * part.coverage, part.step, why_not_recorded(*context_, {"grad_noise_trace"}));
    if (!std::isnan(part.own.value)) {
      text += fmt::format("; its own noise scale is {}",
                          format_interval(part.own.value, part.own.low, part.own.high));
    }
    return text + fmt::format(
                      "; the limits for the noise scale of the {} assume that the rest is all "
                      "signal, or all noise",
                      whole);
  }

  void advise(Finding& finding, double batch) const {
    if (finding.scope != "run" || !(batch > 0)) return;
    const std::string scale = format_interval(finding.measured, finding.ci_low, finding.ci_high);
    const double efficiency = 1 / (1 + finding.measured / batch);
    const bool known = !std::isnan(finding.measured);
    const double decades = known ? std::fabs(std::log10(finding.measured / batch)) : 0;
    finding.importance = std::min(0.75, 0.5 + 0.1 * decades);
    if (finding.ci_low > kFarFactor * batch) {
      finding.advice =
          known
              ? fmt::format(
                    "Batch {} is {}x below the noise scale {}: a step makes {:.0f} % of the "
                    "progress of a noiseless one, and a larger batch needs almost "
                    "proportionally fewer steps.",
                    format_number(batch), format_number(finding.measured / batch), scale,
                    100 * efficiency)
              : fmt::format(
                    "Batch {} is below the noise scale, which is at least {}: steps are dominated "
                    "by noise, and a larger batch needs almost proportionally fewer of them.",
                    format_number(batch), format_number(finding.ci_low));
    } else if (finding.ci_high < batch / kFarFactor) {
      if (finding.ci_high < batch / kAlarmFactor) finding.alarm = "batch_far_past_noise_scale";
      finding.advice =
          known ? fmt::format(
                      "Batch {} is {}x above the noise scale {}: a step makes {:.0f} % of the "
                      "progress of a "
                      "noiseless one, and a batch near the noise scale would reach the same loss "
                      "with fewer "
                      "examples.",
                      format_number(batch), format_number(batch / finding.measured), scale,
                      100 * efficiency)
                : fmt::format(
                      "Batch {} is above the noise scale, which is at most {}: a batch near "
                      "the noise scale would reach the same loss with fewer examples.",
                      format_number(batch), format_number(finding.ci_high));
    } else if (known && finding.ci_low >= batch / kFarFactor &&
               finding.ci_high <= kFarFactor * batch) {
      finding.advice = fmt::format(
          "Batch {} is near the noise scale {}: a step makes {:.0f} % of the progress of a "
          "noiseless one; a good compromise between steps and examples.",
          format_number(batch), scale, 100 * efficiency);
    } else {
      // Nothing to act upon: said where the law is looked up, and nowhere else.
      set_verdict(finding, finding.verdict);
      finding.importance = std::min(finding.importance, 0.25);
      finding.gate +=
          fmt::format("; the noise scale is {}: the interval is too wide to judge batch {}",
                      std::isfinite(finding.ci_high)
                          ? fmt::format("between {} and {}", format_number(finding.ci_low),
                                        format_number(finding.ci_high))
                          : fmt::format("at least {}", format_number(finding.ci_low)),
                      format_number(batch));
      return;
    }
    finding.advice += " This is an order of magnitude only";
    finding.advice += adam_
                          ? "; for Adam-trained language models it was far too low (Merrill et al. "
                            "2025): verify by branching the run at k times the batch and sqrt(k) "
                            "times the learning rate."
                          : " (Merrill et al. 2025): verify by branching the run.";
  }

  ColumnIndex batch_size_ = kNoColumn;
  const RunContext* context_ = nullptr;
  NoiseColumns run_columns_;
  NoiseColumns layer_columns_;
  DistanceColumns run_distances_;
  DistanceColumns layer_distances_;
  ColumnIndex distinct_column_ = kNoColumn;
  uint64_t counts_ = 0;  // of distinct examples
  double distinct_ = 0;  // their largest share
  NoiseSeries run_;
  std::vector<NoiseSeries> layers_;
  std::vector<std::string> layer_scope_;
  std::string batch_norm_;  // path of a BatchNorm layer; empty: none
  bool adam_ = false;
};

}  // namespace

std::unique_ptr<Law> make_gradient_noise_scale() { return std::make_unique<GradientNoiseScale>(); }

}  // namespace tycho::analyzer
