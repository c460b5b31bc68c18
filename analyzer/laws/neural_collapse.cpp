// In the terminal phase, where all training examples are classified right and training goes on, the
// last features collapse (Papyan, Han and Donoho 2020): to their class means (NC1, tr(S_W
// S_B^+)/C), the means to a regular simplex (NC2: equal norms, cosines -1/(C-1)), the classifier to
// the means (NC3), and its decision to the nearest mean (NC4). All four tend to 0, and no theory
// says how fast: tested is the trend, and violated it can be with weight decay only, without which
// the time it takes is not bounded. Medians over the first and the last quarter of the terminal
// phase are compared once it has lasted as long as it took to get there.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/thinned_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTerminalError = 0.005;  // share of the probe batch that is classified wrong
constexpr double kFallen = 0.8;           // of the value early in the terminal phase
constexpr double kRisen = 1.25;
constexpr double kSmall = 0.1;  // NC2 to NC4 below it need not fall
constexpr size_t kFewest = 16;  // observations in the terminal phase

const LawDescription& law() {
  static const LawDescription description = {
      "neural_collapse",
      "Neural collapse",
      Line::kUniversalPhenomena,
      "NC1 tr(S_W S_B^+)/C, NC2 (norms and angles of class means), NC3 |W/|W| - M/|M||^2 and NC4 "
      "all tend to 0; measured: NC1 late over early in the terminal phase",
      "Classification with balanced classes and more features than classes; terminal phase: at "
      "most 0.5 % of the training examples in the probe batch wrong, for as long as it took to "
      "get there; weight decay",
      "Training past zero error still changes the geometry of the last layer: margins and "
      "robustness grow while NC1 falls. Once NC1 is flat, stop",
      "Papyan, Han and Donoho 2020, arXiv:2008.08186",
      {"probe_error", "class_variability", "class_mean_norm_variation",
       "class_mean_angle_deviation", "self_duality", "nearest_center_mismatch"},
      {"It tests a trend, not a rate; without weight decay the trend is logarithmic in time.",
       "The probe batch must be training data: on other data collapse is weaker."}};
  return description;
}

class NeuralCollapse : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    error_ = context.column("probe_error", v1::SCOPE_RUN);
    variability_ = context.column("class_variability", v1::SCOPE_RUN);
    others_ = {context.column("class_mean_norm_variation", v1::SCOPE_RUN),
               context.column("class_mean_angle_deviation", v1::SCOPE_RUN),
               context.column("self_duality", v1::SCOPE_RUN),
               context.column("nearest_center_mismatch", v1::SCOPE_RUN)};
  }

  void observe(const Frame& frame) override {
    if (first_step_ < 0) first_step_ = frame.step();
    const double error = frame.column(error_)[0];
    const double variability = frame.column(variability_)[0];
    if (!std::isfinite(variability) || !std::isfinite(error)) return;
    measured_ = true;
    last_error_ = error;
    last_step_ = frame.step();
    decays_ = decays_ || has_weight_decay(frame.optimizer());
    if (!(error <= kTerminalError)) {
      terminal_ = -1;
      collapse_ = ThinnedSeries();
      rest_ = ThinnedSeries();
      return;
    }
    if (terminal_ < 0) terminal_ = frame.step();
    collapse_.add({variability, frame.column(others_[0])[0], frame.column(others_[1])[0]},
                  frame.step());
    rest_.add({frame.column(others_[2])[0], frame.column(others_[3])[0], 0}, frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "NC1 late over early";
    finding.evidence_statistic = "class_variability";
    if (!measured_) {
      set_not_measured(finding, *context_, "class means were", {"class_variability"});
      return {finding};
    }
    if (terminal_ < 0) {
      finding.gate = fmt::format("not in the terminal phase: {:.2g} % of the examples are wrong",
                                 100 * last_error_);
      return {finding};
    }
    const size_t size = collapse_.points().size();
    const double lasted = steps_between(terminal_, last_step_);
    const double before = steps_between(first_step_, terminal_);
    if (size < kFewest || lasted < before) {
      finding.gate = fmt::format(
          "the terminal phase has lasted {} steps ({} observations) and took {} to reach", lasted,
          size, before);
      return {finding};
    }
    judge_trends(&finding);
    return {finding};
  }

 private:
  static bool has_weight_decay(const v1::OptimizerSettings* settings) {
    if (settings == nullptr) return false;
    return std::any_of(settings->group().begin(), settings->group().end(),
                       [](const v1::ParameterGroup& group) { return group.weight_decay() > 0; });
  }

  struct Trend {
    double early = 0;
    double late = 0;
    double ratio() const { return late / early; }
  };

  static Trend trend(const ThinnedSeries& series, size_t which) {
    const size_t size = series.points().size();
    return {series.median(which, 0, std::max<size_t>(3, size / 16)),
            series.median(which, size - size / 4, size)};
  }

  void judge_trends(Finding* finding) const {
    finding->window_begin = terminal_;
    finding->window_end = last_step_;
    const Trend first = trend(collapse_, 0);
    finding->measured = first.ratio();
    finding->evidence_level = 0;
    const std::array<Trend, 4> others = {trend(collapse_, 1), trend(collapse_, 2), trend(rest_, 0),
                                         trend(rest_, 1)};
    const std::array<const char*, 4> name = {"norms (NC2)", "angles (NC2)", "duality (NC3)",
                                             "nearest mean (NC4)"};
    finding->gate = fmt::format("terminal phase of {} steps; NC1 {} to {}",
                                steps_between(terminal_, last_step_), format_number(first.early),
                                format_number(first.late));
    std::string rising;
    for (size_t i = 0; i < others.size(); ++i) {
      if (!std::isfinite(others[i].late)) continue;
      finding->gate += fmt::format(", {} {} to {}", name[i], format_number(others[i].early),
                                   format_number(others[i].late));
      if (others[i].late > kSmall && others[i].ratio() > kRisen)
        rising += (rising.empty() ? "" : ", ") + std::string(name[i]);
    }
    const bool falls = first.ratio() < kFallen;
    if (falls && rising.empty()) {
      set_verdict(*finding, Verdict::kHolds);
      finding->advice =
          "The last layer collapses to its class means: training past zero error still tightens "
          "classes. This improves margins, seldom accuracy.";
    } else if (first.ratio() > kRisen && collapse_.rises(0) && decays_) {
      set_verdict(*finding, Verdict::kViolated);
      finding->importance = 0.45;
      finding->advice =
          "All examples are classified correctly, but features of a class spread: does a "
          "regularizer, augmentation or noise keep them apart, or are classes far from balanced?";
    } else {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate += falls ? "; NC1 falls, but these rise: " + rising
                       : decays_
                           ? "; NC1 does not clearly fall (a small learning rate, or features "
                             "that are frozen?)"
                           : "; NC1 does not clearly fall, and without weight decay it need not "
                             "within this time: collapse is then logarithmic in time";
    }
  }

  const RunContext* context_ = nullptr;
  ColumnIndex error_ = kNoColumn;
  ColumnIndex variability_ = kNoColumn;
  std::array<ColumnIndex, 4> others_ = {kNoColumn, kNoColumn, kNoColumn, kNoColumn};
  bool measured_ = false;
  bool decays_ = false;
  double last_error_ = kUnknown;
  int64_t first_step_ = -1;
  int64_t last_step_ = -1;
  int64_t terminal_ = -1;   // step at which the terminal phase began; -1: not in it
  ThinnedSeries collapse_;  // NC1, NC2 norms, NC2 angles; in the terminal phase
  ThinnedSeries rest_;      // NC3, NC4
};

}  // namespace

std::unique_ptr<Law> make_neural_collapse() { return std::make_unique<NeuralCollapse>(); }

}  // namespace tycho::analyzer
