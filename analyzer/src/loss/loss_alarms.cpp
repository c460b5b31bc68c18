#include "src/loss/loss_alarms.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>

#include "src/loss/held_out_alarms.h"
#include "src/loss/progress_end.h"
#include "src/number_text.h"
#include "src/statistics/student_t.h"

namespace tycho::analyzer {
namespace {

using Stretches = std::vector<LossStretch>;

constexpr uint64_t kFewestLosses = 64;
constexpr size_t kFewestStretches = 32;

// Of a jump, in extents of the range before it.
constexpr double kStillOutside = 3;
constexpr double kSlowGrowth = 100;
// Of a jump that the weights bear witness to, in what was largest before.
constexpr double kMultiplied = 5;
constexpr double kWeightsGrown = 2;  // squared norm

// Of a loss that does not fall; of one that no longer does, see progress_end.cpp.
constexpr double kLittleFall = 0.2;
constexpr double kRestOfLevel = 0.01;
constexpr double kLatestStuck = 0.3;

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  return number_text(value, 4);
}

double mean_of(const Stretches& all, size_t begin, size_t end) {
  double mean = 0;
  for (size_t i = begin; i < end; ++i)
    mean += (all[i].mean - mean) / static_cast<double>(i - begin + 1);
  return mean;
}

/// Range of single losses; `extent` is at least their size, so that a first loss has one.
struct Range {
  double low = 0;
  double high = 0;
  double extent = 0;
  uint64_t count = 0;
  void add(const LossStretch& stretch) {
    low = count == 0 ? stretch.lowest.value : std::min(low, stretch.lowest.value);
    high = count == 0 ? stretch.highest.value : std::max(high, stretch.highest.value);
    count += stretch.count;
    extent = std::max(high - low, std::max(std::fabs(low), std::fabs(high)));
  }
};

/// How many extents a jump has to have: a few losses say little of the range, least where they may
/// lie anywhere about zero.
double least_jump(uint64_t before, bool positive) {
  if (before >= 20) return 10;
  if (before >= 5) return positive ? 30 : 100;
  return positive ? 100 : 1e6;
}

/// The first stretch outside for good, upwards. `positive`: no loss was negative. `witnessed`: the
/// weights grew too.
std::optional<size_t> divergence(const Stretches& all, bool positive, bool witnessed) {
  const size_t size = all.size();
  if (size < 2) return std::nullopt;
  std::vector<double> last;
  for (size_t i = size - std::max<size_t>(1, size / 10); i < size; ++i) last.push_back(all[i].mean);
  std::sort(last.begin(), last.end());
  const double end = last[last.size() / 2];
  const size_t soon = std::max<size_t>(5, size / 20);
  Range before;
  for (size_t i = 1; i < size; ++i) {
    before.add(all[i - 1]);
    if (!(before.extent > 0)) continue;
    double highest = all[i].mean;
    for (size_t j = i; j < std::min(size, i + soon); ++j) highest = std::max(highest, all[j].mean);
    const bool jumped =
        highest > before.high + least_jump(before.count, positive) * before.extent &&
        end > before.high + kStillOutside * before.extent;
    const bool multiplied = positive && witnessed && highest > kMultiplied * before.high &&
                            end > kMultiplied * before.high;
    if (jumped || multiplied) {
      size_t first = i;
      while (all[first].mean <= before.high + before.extent) ++first;
      return first;
    }
  }
  for (const size_t part : {size / 5, size / 3, size / 2}) {
    if (part < 4) continue;
    Range prefix;
    for (size_t i = 0; i < part; ++i) prefix.add(all[i]);
    if (!(prefix.extent > 0) || end <= prefix.high + kSlowGrowth * prefix.extent) continue;
    size_t first = part;
    while (all[first].mean <= prefix.high + prefix.extent) ++first;
    return first;
  }
  return std::nullopt;
}

Stretches mirrored(Stretches all) {
  for (LossStretch& stretch : all) {
    stretch.mean = -stretch.mean;
    const LossPoint lowest = stretch.lowest;
    stretch.lowest = {stretch.highest.step, -stretch.highest.value};
    stretch.highest = {lowest.step, -lowest.value};
  }
  return all;
}

std::optional<LossAlarm> diverged(const LossCourse& course) {
  const Stretches all = course.stretches_from_the_first();
  if (all.empty()) return std::nullopt;
  const bool positive = course.lowest().value >= 0;
  const bool witnessed = course.weight_growth() >= kWeightsGrown;
  auto where = divergence(all, positive, witnessed);
  const bool upwards = where.has_value();
  if (!where) where = divergence(mirrored(all), false, false);
  if (!where) return std::nullopt;
  Range before;
  for (size_t i = 0; i < *where; ++i) before.add(all[i]);
  const LossStretch& out = all[*where];
  const LossBreak* open = course.open_break();
  const int64_t step =
      upwards && open != nullptr && open->begin <= out.begin ? open->begin : out.begin;
  const LossPoint extreme = upwards ? course.highest() : course.lowest();
  LossAlarm alarm;
  alarm.code = "loss_diverged";
  alarm.severity = Severity::kAlarm;
  alarm.at = {step, upwards ? out.highest.value : out.lowest.value};
  alarm.title = upwards ? "The loss diverged" : "The loss fell without bound";
  const LossPoint end = all.back().count == 1 && std::isfinite(course.last().value)
                            ? course.last()
                            : LossPoint{all.back().end, all.back().mean};
  const std::string range =
      before.low == before.high
          ? fmt::format("was {}", number(before.low))
          : fmt::format("lay between {} and {}", number(before.low), number(before.high));
  alarm.text = fmt::format(
      "Before {}step {} it {}; then it {} to {} at step {}, and was {} at step {}, the last one "
      "observed. Later measurements describe a broken run: resume from an earlier checkpoint, "
      "{}.",
      out.count == 1 ? "" : "about ", step, range, upwards ? "rose" : "fell", number(extreme.value),
      extreme.step, number(end.value), end.step,
      upwards ? "with a lower learning rate or clipped gradients"
              : "and look at what bounds this loss from below");
  return alarm;
}

std::optional<LossAlarm> not_finite(const LossCourse& course) {
  if (course.not_finite() == 0) return std::nullopt;
  const LossPoint first = course.first_not_finite();
  const LossPoint before = course.before_not_finite();
  const bool over = course.finite_again().step >= 0;
  LossAlarm alarm;
  alarm.code = "loss_not_finite";
  alarm.severity = over ? Severity::kWarning : Severity::kAlarm;
  alarm.at = first;
  alarm.title = over ? "The loss was not finite for a while" : "The loss is not finite";
  alarm.text = fmt::format("It was {} at step {}", number(first.value), first.step);
  if (before.step >= 0)
    alarm.text +=
        fmt::format(" ({} at step {}, observed before)", number(before.value), before.step);
  alarm.text += fmt::format("; of {1} observed losses {0} {2} not finite", course.not_finite(),
                            course.observed(), course.not_finite() == 1 ? "was" : "were");
  if (over) {
    alarm.text += fmt::format(
        ", and from step {} on they were finite again. Look at the data of that step; with a loss "
        "scale, "
        "such steps should be skipped.",
        course.finite_again().step);
  } else {
    alarm.text +=
        ", and none after it was. Nothing is learned from there on: resume from an earlier "
        "checkpoint, with a lower learning rate or clipped gradients, and look at the data of "
        "that step.";
  }
  return alarm;
}

struct Window {
  double mean = 0;
  double error = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

/// Tenths of the run, the last one first: so that the last one is whole.
std::vector<Window> windows_of(const Stretches& all) {
  constexpr size_t kWindows = 10;
  const size_t width = all.size() / kWindows;
  std::vector<Window> windows;
  for (size_t end = all.size(); end >= width && windows.size() < kWindows; end -= width) {
    Window window;
    window.mean = mean_of(all, end - width, end);
    double square = 0;
    for (size_t i = end - width; i < end; ++i)
      square += (all[i].mean - window.mean) * (all[i].mean - window.mean);
    window.error = std::sqrt(square / static_cast<double>(width * (width - 1)));
    window.begin = all[end - width].begin;
    window.end = all[end - 1].end;
    windows.push_back(window);
  }
  return windows;
}

Window lowest_of(const std::vector<Window>& windows) {
  return *std::min_element(windows.begin(), windows.end(),
                           [](const Window& a, const Window& b) { return a.mean < b.mean; });
}

std::optional<LossAlarm> rose(const Stretches& all, const std::vector<Window>& windows) {
  const Window last = windows.front();
  const Window best = lowest_of(windows);
  const Window first = windows.back();
  const double start = std::max(first.mean, start_of(all));
  const double lost = last.mean - best.mean;
  const double fall = start - best.mean;
  constexpr double kClear = 5;
  if (!(lost > kClear * std::hypot(last.error, best.error)) || !(lost > 0.5 * fall) ||
      !(lost > 0.1 * std::fabs(best.mean)))
    return std::nullopt;
  LossAlarm alarm;
  alarm.code = "loss_rose";
  alarm.severity = Severity::kWarning;
  alarm.at = {best.end, best.mean};
  alarm.title = last.mean > start ? "The loss ended above where it began" : "The loss rose again";
  if (best.begin == first.begin) {
    alarm.text = fmt::format("On average it was {} from step {} to {}, and {} from step {} to {}.",
                             number(first.mean), first.begin, first.end, number(last.mean),
                             last.begin, last.end);
  } else {
    alarm.text = fmt::format(
        "On average it was {} from step {} to {}, at its lowest {} from step {} to {}, and {} from "
        "step {} to {}.",
        number(first.mean), first.begin, first.end, number(best.mean), best.begin, best.end,
        number(last.mean), last.begin, last.end);
  }
  alarm.text += fmt::format(
      " A loss that is being minimised should not rise: look at what changed after step {} "
      "(learning rate, data), and keep the checkpoint from there. In adversarial or "
      "reinforcement learning this need not mean anything.",
      best.end);
  return alarm;
}

/// A break that lasted, or lasts: something changed. Shorter ones are spikes.
bool lasted(const LossBreak& seen, const LossCourse& course) {
  const double run =
      static_cast<double>(course.last().step) - static_cast<double>(course.first().step);
  const double last = static_cast<double>(seen.back < 0 ? course.last().step : seen.back);
  return seen.count >= 8 && last - static_cast<double>(seen.begin) > 0.05 * run;
}

std::optional<LossAlarm> jumped(const LossCourse& course) {
  const LossBreak* seen = course.open_break();
  for (const LossBreak& ended : course.breaks()) {
    if (seen == nullptr && lasted(ended, course)) seen = &ended;
  }
  if (seen == nullptr || !lasted(*seen, course)) return std::nullopt;
  LossAlarm alarm;
  alarm.code = "loss_jumped";
  alarm.severity = Severity::kWarning;
  alarm.at = {seen->begin, seen->peak.value};
  alarm.title = seen->back < 0 ? "The loss jumped, and stayed there"
                               : "The loss jumped, and took long to recover";
  alarm.text = fmt::format(
      "At step {} it left {}, the median of the losses before; it rose to {} "
      "(step {}) and ",
      seen->begin, number(seen->usual), number(seen->peak.value), seen->peak.step);
  alarm.text += seen->back < 0 ? fmt::format("was {} at step {}, the last one observed.",
                                             number(course.last().value), course.last().step)
                               : fmt::format("was back at step {}.", seen->back);
  alarm.text +=
      " Look at what changed at that step: data, learning rate, weights loaded from "
      "elsewhere.";
  return alarm;
}

std::optional<LossAlarm> spikes(const LossCourse& course) {
  std::vector<LossBreak> shown;
  uint64_t count = course.break_count();
  for (const LossBreak& each : course.breaks()) {
    if (lasted(each, course)) {
      --count;
    } else {
      shown.push_back(each);
    }
  }
  if (shown.empty()) return std::nullopt;
  const LossBreak& largest = shown.front();
  LossAlarm alarm;
  alarm.code = "loss_spikes";
  alarm.severity = Severity::kWarning;
  alarm.at = largest.peak;
  alarm.title = count == 1 ? "A spike of the loss" : fmt::format("{} spikes of the loss", count);
  alarm.text =
      fmt::format("{} {} at step {}, against a usual value of {}, and was back at step {}.",
                  count == 1 ? "It rose to" : "The largest rose to", number(largest.peak.value),
                  largest.peak.step, number(largest.usual), largest.back);
  constexpr size_t kOthers = 4;
  std::string others;
  for (size_t i = 1; i < shown.size() && i <= kOthers; ++i) {
    others += fmt::format("{}{} at step {}", i == 1 ? "" : ", ", number(shown[i].peak.value),
                          shown[i].peak.step);
  }
  if (!others.empty()) alarm.text += " The next: " + others + ".";
  alarm.text +=
      " Look at the data of that step; if they are normal, clip gradients or lower the learning "
      "rate.";
  return alarm;
}

/// The fall between the two halves of a stretch of the run, from eight blocks of each.
struct Rest {
  double first = 0;  ///< mean of the first block
  double level = 0;  ///< mean of the second half
  double fall = 0;
  double error = 0;  ///< of the fall
};

Rest rest(const Stretches& all, size_t begin) {
  constexpr size_t kBlocks = 8;
  const size_t length = (all.size() - begin) / (2 * kBlocks);
  const size_t from = all.size() - length * 2 * kBlocks;  // what does not divide is left out
  Rest result;
  double mean[2] = {0, 0};
  double square[2] = {0, 0};
  for (size_t half = 0; half < 2; ++half) {
    std::vector<double> block;
    for (size_t b = 0; b < kBlocks; ++b) {
      const size_t at = from + (half * kBlocks + b) * length;
      block.push_back(mean_of(all, at, at + length));
      mean[half] += block.back() / kBlocks;
    }
    for (const double value : block) square[half] += (value - mean[half]) * (value - mean[half]);
    if (half == 0) result.first = block.front();
  }
  result.level = mean[1];
  result.fall = mean[0] - mean[1];
  result.error = std::sqrt((square[0] + square[1]) / (kBlocks * (kBlocks - 1)));
  return result;
}

/// `lowest`: the lowest level of a tenth of the run.
std::optional<LossAlarm> stuck(const Stretches& all, double lowest) {
  const double start = start_of(all);
  const int64_t last = all.back().end;
  static const double kQuantile = student_t_quantile(0.95, 14);
  const double latest = kLatestStuck * static_cast<double>(all.size());
  for (size_t begin = 0; begin + 16 <= all.size(); ++begin) {
    if (static_cast<double>(begin) > latest) return std::nullopt;
    const Rest seen = rest(all, begin);
    const double upper = std::fabs(seen.fall) + kQuantile * seen.error;
    const double allowed = kRestOfLevel * std::fabs(seen.level);
    if (start - seen.level > kLittleFall * std::fabs(start) || upper > allowed ||
        seen.level - lowest > allowed + 2 * seen.error ||
        seen.first - seen.level > allowed + 2 * seen.error)
      continue;
    LossAlarm alarm;
    const int64_t step = all[begin].begin;
    alarm.at = {step, all[begin].mean};
    alarm.code = "loss_stuck";
    alarm.severity = Severity::kWarning;
    alarm.title = "The loss does not fall";
    alarm.text = fmt::format(
        "It began at {}, and from step {} to {} it stayed at {}. If it is meant to fall, "
        "nothing is learned: check that the optimizer holds the parameters, that labels belong "
        "to their inputs, and the size of the learning rate. In adversarial or reinforcement "
        "learning this need not mean anything.",
        number(start), step, last, number(seen.level));
    return alarm;
  }
  return std::nullopt;
}

std::string percent(double share) { return number_text(100 * share, 2); }

std::optional<LossAlarm> at_floor(const LossCourse& course, bool held_out_falls) {
  const std::optional<ProgressEnd> end = progress_end(course);
  if (!end) return std::nullopt;
  LossAlarm alarm;
  alarm.at = {end->step, end->first};
  alarm.code = "loss_at_floor";
  alarm.severity = Severity::kNote;
  alarm.title = "The training loss reached its floor";
  const std::string of = fmt::format("The last {:.0f} of {:.0f} steps ({:.0f} %)", end->after,
                                     end->steps, 100 * end->share());
  if (end->at_zero) {
    alarm.text = fmt::format(
        "By about step {} it had fallen from {} to {}, {} % of where it began. {} took it to {}.",
        end->step, number(end->start), number(end->first), percent(end->first / end->start), of,
        number(end->level));
  } else {
    const double level = std::fabs(end->level);
    alarm.text = fmt::format(
        "{} did not lower the loss by more than {} %: the mean over the first eighth of them is {} "
        "% [{}, {}] above that over their last half, {}.",
        of, percent(end->at_most / level), percent(end->fall / level), percent(end->low / level),
        percent(end->high / level), number(end->level));
    alarm.text +=
        fmt::format(" It had fallen there from {} by step {}", number(end->start), end->step);
    alarm.text += end->earliest < end->step
                      ? fmt::format(", and perhaps by step {} already.", end->earliest)
                      : ".";
  }
  alarm.text +=
      held_out_falls
          ? " The held-out loss still falls, though: that is a reason to go on."
          : " Stop about there, or spend the steps on more data or a larger model, unless the "
            "held-out loss still improves or the last digits of the loss matter.";
  return alarm;
}

}  // namespace

const char* to_string(Severity severity) {
  switch (severity) {
    case Severity::kAlarm:
      return "alarm";
    case Severity::kWarning:
      return "warning";
    case Severity::kNote:
      return "note";
  }
  return "unknown";
}

std::vector<LossAlarm> loss_alarms(const LossCourse& course) {
  std::vector<LossAlarm> result;
  const auto take = [&](std::optional<LossAlarm> alarm) {
    if (alarm) result.push_back(std::move(*alarm));
    return !result.empty();
  };
  const Stretches all = course.stretches();
  take(not_finite(course));
  if (take(diverged(course)) && result.back().code == "loss_diverged") return result;
  bool lost_again = course.not_finite() > 0;
  const std::vector<LossAlarm> held_out = held_out_alarms(course);
  const auto held_out_says = [&](const char* code) {
    return !held_out.empty() && held_out.front().code == code;
  };
  if (course.observed() - course.not_finite() >= kFewestLosses && all.size() >= kFewestStretches) {
    const auto windows = windows_of(all);
    const auto risen = rose(all, windows);
    const auto jump = jumped(course);
    lost_again = lost_again || jump || risen;
    // A jump that undid the progress is one thing, not two.
    take(jump ? jump : risen);
    take(spikes(course));
    if (!risen && course.open_break() == nullptr) {
      const auto rests = stuck(all, lowest_of(windows).mean);
      take(rests ? rests : at_floor(course, held_out_says("held_out_falls")));
    }
  }
  // Of a training loss that rose or broke, the held-out loss says nothing new.
  if (!held_out.empty() && !(lost_again && held_out_says("held_out_rose")))
    result.push_back(held_out.front());
  std::stable_sort(result.begin(), result.end(),
                   [](const LossAlarm& a, const LossAlarm& b) { return a.severity < b.severity; });
  return result;
}

std::string describe_loss(const LossCourse& course) {
  if (course.observed() == 0) return "";
  const LossPoint first = course.first();
  const LossPoint last = course.last();
  std::string text = fmt::format("The loss was {} at step {}", number(first.value), first.step);
  if (course.observed() == 1) return text + ", the only one observed.";
  text += fmt::format(" and {} at step {}", number(last.value), last.step);
  if (course.lowest().step >= 0) {
    text +=
        fmt::format("; lowest {} at step {}, highest {} at step {}", number(course.lowest().value),
                    course.lowest().step, number(course.highest().value), course.highest().step);
  }
  text += ".";
  if (course.observed() < kFewestLosses && loss_alarms(course).empty()) {
    text += fmt::format(" {} losses are too few to judge its course, except for a divergence.",
                        course.observed());
  }
  return text;
}

}  // namespace tycho::analyzer
