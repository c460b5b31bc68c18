// Above the edge the loss grows along the top eigenvector. In a network it does not grow for ever:
// for f = u.v x/sqrt(n), target 0, x = 1, with lambda = (|u|^2+|v|^2)/n, gradient descent is
// exactly
//   f' = f (1 - eta lambda + eta^2 f^2/n),  lambda' = lambda + (eta f^2/n)(eta lambda - 4),
// so that for 2 < eta lambda < 4 the growing f lowers lambda until eta lambda < 2, and f falls
// again. An episode begins where the sharpness exceeds the edge by a fifth and its error bound, and
// ends where it is back at the edge: training may hover a little above it. Predicted: it ends,
// after the loss has risen. On a quadratic, whose curvature cannot fall, it does not.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/edge_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kAbove = 0.2;         // of the edge, where an episode begins
constexpr double kAt = 0.1;            // where it ends
constexpr double kAdaptiveMore = 0.1;  // of both, where the preconditioner moves too
constexpr double kRise = 0.02;         // of the loss, relative
constexpr double kScheduled = 1.2;     // threshold at the end over that at the beginning
constexpr uint64_t kLongEpisode = 16;  // measurements above the edge without return

const LawDescription& law() {
  static const LawDescription description = {
      "catapult",
      "Catapult",
      Line::kSolvableSettings,
      "Where the sharpness is above the edge, s > 1, the loss rises until the sharpness has "
      "fallen back to the edge; then training continues. Two linear layers: for 1 < s < 2",
      "Full batch, or a batch well above the noise scale; squared loss and wide layers in the "
      "derivation",
      "One catapult at the beginning is harmless and ends in a flatter region. If catapults "
      "repeat, or the loss does not recover, lower the learning rate",
      "Lewkowycz et al. 2020, arXiv:2003.02218; map exact for two linear layers",
      {"preconditioned_sharpness", "preconditioned_sharpness_error_bound", "stability_threshold",
       "loss", "probe_loss"},
      {"Largest learning rate from which training recovers: s = 2 for two linear layers, about "
       "6 for ReLU networks empirically; not predicted in general.",
       "Events between two measurements of the sharpness are not seen."}};
  return description;
}

struct Episode {
  int64_t begin = -1;
  int64_t end = -1;  // step of the return
  uint64_t measurements = 0;
  double start = 0;        // s
  double last = 0;         // s where it ended, or is now
  double last_error = 0;   // bound
  double start_level = 0;  // of the loss
  double peak_level = 0;
  double start_threshold = 0;
  bool scheduled = false;  // the learning rate was lowered meanwhile
  bool rose() const { return peak_level > start_level + kRise * std::fabs(start_level); }
  double rise() const { return (peak_level - start_level) / std::fabs(start_level); }
};

class Catapult : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override { edge_.begin(context); }

  void observe(const Frame& frame) override {
    const double level_before = edge_.last_level();
    edge_.observe(frame);
    const double level = edge_.last_level();
    if (open_) current_.peak_level = std::fmax(current_.peak_level, level);
    if (!edge_.measured()) return;
    seen_ = true;
    const double more = edge_.adaptive() ? kAdaptiveMore : 0;
    const double least = edge_.ratio() - edge_.ratio_error();
    if (!open_ && least > 1 + kAbove + more) {
      open_ = true;
      current_ = Episode();
      current_.begin = frame.step();
      current_.start = edge_.ratio();
      current_.start_threshold = edge_.threshold();
      current_.start_level = std::fmin(level_before, level);
      current_.peak_level = std::fmax(level_before, level);
    }
    if (!open_) return;
    ++current_.measurements;
    current_.end = frame.step();
    current_.last = edge_.ratio();
    current_.last_error = edge_.ratio_error();
    current_.scheduled = edge_.threshold() > kScheduled * current_.start_threshold;
    if (least > 1 + kAt + more) return;
    open_ = false;
    returns_ += current_.rose();
    if (largest_.begin < 0 || !(current_.rise() <= largest_.rise())) largest_ = current_;
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.evidence_statistic = edge_.sharpness().statistic();
    set_verdict(finding, Verdict::kNotApplicable);
    if (!seen_) {
      edge_.sharpness().explain(finding);
    } else if (edge_.regime().excuse(
                   finding, "with gradient noise training becomes unstable below the edge")) {
    } else if (!open_ && largest_.begin < 0) {
      finding.gate = "the sharpness was never above the edge";
    } else {
      judge_episode(open_ ? current_ : largest_, &finding);
    }
    return {finding};
  }

 private:
  void judge_episode(const Episode& episode, Finding* finding) const {
    finding->unit = "of the edge";
    finding->predicted = 1;
    finding->measured = episode.last;
    finding->ci_low = episode.last - episode.last_error;
    finding->ci_high = episode.last + episode.last_error;
    finding->confidence = 1;
    finding->window_begin = episode.begin;
    finding->window_end = episode.end;
    set_verdict(*finding, Verdict::kNotYet);
    if (open_) {
      finding->gate = fmt::format("above the edge since step {}", episode.begin);
      if (!std::isfinite(edge_.last_level())) {
        finding->importance = 0.85;
        finding->gate += "; the loss is no longer finite";
        finding->advice = fmt::format(
            "From step {} on the sharpness was above the edge (initially {} times the edge), "
            "and training did not recover: divide the learning rate by at least that factor.",
            episode.begin, format_number(episode.start));
      } else if (episode.rose() && episode.measurements >= kLongEpisode) {
        set_verdict(*finding, Verdict::kViolated);
        finding->advice = fmt::format(
            "Since step {} the loss is up by {:.0f} % and the sharpness stays above the edge: "
            "this model does not flatten out of the instability. Divide the learning rate by {}.",
            episode.begin, 100 * episode.rise(), format_number(episode.last));
      }
      return;
    }
    finding->gate = edge_.regime().describe();
    if (episode.scheduled) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "the learning rate was lowered while the sharpness was above the edge";
      return;
    }
    if (!episode.rose()) {
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate = "the sharpness fell back to the edge before the loss had risen";
      return;
    }
    set_verdict(*finding, Verdict::kHolds);
    finding->advice = fmt::format(
        "At step {} the sharpness was {} times the edge; the loss rose by {:.0f} %, and by step {} "
        "the sharpness had fallen to {} of the edge{}. {}",
        episode.begin, format_number(episode.start), 100 * episode.rise(), episode.end,
        format_number(episode.last),
        returns_ > 1
            ? fmt::format(" (the largest of {} such catapults: the learning rate is at its "
                          "limit)",
                          returns_)
            : "",
        starts_above() ? "A warm-up over these steps would avoid the rise."
                       : "A learning rate smaller by that factor would avoid the rise.");
  }

  /// As the law on warm-ups judges: was the run above the edge where it began?
  bool starts_above() const {
    return edge_.first_ratio() - edge_.first_ratio_error() > 1 + EdgeSeries::kStartMargin &&
           edge_.first_step() == largest_.begin;
  }

  EdgeSeries edge_;
  bool seen_ = false;
  bool open_ = false;
  uint64_t returns_ = 0;  // with a rise of the loss
  Episode current_;
  Episode largest_;  // of those that ended, by the rise of the loss
};

}  // namespace

std::unique_ptr<Law> make_catapult() { return std::make_unique<Catapult>(); }

}  // namespace tycho::analyzer
