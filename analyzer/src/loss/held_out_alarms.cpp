#include "src/loss/held_out_alarms.h"

#include <fmt/format.h>

#include <cmath>

#include "src/number_text.h"

namespace tycho::analyzer {
namespace {

constexpr double kLowered = 0.5;  // of the peak: the schedule has lowered the learning rate

std::string number(double value) { return std::isnan(value) ? "NaN" : number_text(value, 4); }

/// The learning rate at the end over its peak; NaN where it is not known.
double rate_at_end(const LossCourse& course) {
  double peak = 0;
  const auto all = course.stretches();
  for (const LossStretch& each : all) peak = std::fmax(peak, each.rate);
  return all.empty() || !(peak > 0) ? kUnknown : all.back().rate / peak;
}

LossAlarm rose(const HeldOut& seen) {
  const bool overfits = seen.training == HeldOut::Training::kFell;
  LossAlarm alarm;
  alarm.code = overfits ? "overfitting" : "held_out_rose";
  alarm.severity = Severity::kWarning;
  alarm.at = seen.best;
  alarm.title = overfits ? "The held-out loss rises while the training loss falls"
                         : "The held-out loss has risen";
  alarm.text = fmt::format(
      "It was lowest around step {} (mean {} from step {} to {}), and has risen since by {}, to {} "
      "from step {} on",
      seen.best.step, number(seen.best_level), seen.best_begin, seen.best_end,
      with_interval(seen.rise), number(seen.late_level), seen.late_begin);
  if (overfits) {
    alarm.text += fmt::format(", while the training loss fell from {} to {}",
                              number(seen.training_best), number(seen.training_late));
  } else if (seen.training == HeldOut::Training::kRose) {
    alarm.text +=
        fmt::format(". The training loss rose too, by {}", with_interval(seen.training_change));
  }
  alarm.text += ".";
  if (std::isfinite(seen.gap) && seen.gap > 0)
    alarm.text += fmt::format(" It is now {} above the training loss.", number(seen.gap));
  if (overfits) {
    alarm.text += fmt::format(
        " Keep the weights of step {}. Next time stop there, or regularise: more data, "
        "augmentation, weight decay or a smaller model. A cross-entropy also rises with confidence "
        "in wrong answers alone: where the error counts, look at it too.",
        seen.best.step);
  } else if (seen.training == HeldOut::Training::kRose) {
    alarm.text += fmt::format(
        " That is no overfitting: look at what changed after step {} (learning rate, data), and "
        "keep the weights of that step.",
        seen.best.step);
  } else {
    alarm.text += fmt::format(
        " Whether the training loss fell meanwhile cannot be told. Keep the weights of step {}, "
        "and "
        "look at the training loss: where it falls this is overfitting.",
        seen.best.step);
  }
  return alarm;
}

LossAlarm falls(const HeldOut& seen, double rate) {
  LossAlarm alarm;
  alarm.code = "held_out_falls";
  alarm.severity = Severity::kNote;
  alarm.at = {seen.fall_from, seen.best_level};
  alarm.title = "The held-out loss still falls";
  alarm.text = fmt::format(
      "Over the last third of its values, from step {} on, the second half lies below the first by "
      "{}; the last one is {}.",
      seen.fall_from, with_interval(seen.fall), number(seen.last.value));
  if (rate < kLowered) {
    alarm.text += fmt::format(
        " The learning rate was lowered to {} % of its peak, which is part of that. More steps "
        "should lower it further where the schedule is stretched over them.",
        number_text(100 * rate, 2));
  } else {
    alarm.text += " More steps should lower it further.";
  }
  return alarm;
}

}  // namespace

std::string with_interval(const Difference& difference) {
  return fmt::format("{} [{}, {}]", number_text(difference.value, 3),
                     number_text(difference.low, 3), number_text(difference.high, 3));
}

std::vector<LossAlarm> held_out_alarms(const LossCourse& course) {
  const std::optional<HeldOut> seen = held_out(course);
  if (!seen) return {};
  if (seen->course == HeldOut::Course::kRisen) return {rose(*seen)};
  if (seen->course == HeldOut::Course::kFalling) return {falls(*seen, rate_at_end(course))};
  return {};
}

std::string describe_held_out(const LossCourse& course) {
  const std::optional<HeldOut> seen = held_out(course);
  if (!seen) {
    return course.held_out().observed == 0 ? "" : "No held-out loss was finite.";
  }
  if (seen->values == 1) {
    return fmt::format("The held-out loss was {} at step {}, the only one given.",
                       number(seen->last.value), seen->last.step);
  }
  std::string text =
      fmt::format("The held-out loss was {} at step {}", number(seen->last.value), seen->last.step);
  if (seen->lowest.step == seen->last.step) {
    text += fmt::format(", the lowest of {} values", seen->values);
  } else {
    text += fmt::format(", and lowest of {} values at step {} ({})", seen->values,
                        seen->lowest.step, number(seen->lowest.value));
  }
  if (seen->course == HeldOut::Course::kRisen) {
    text += fmt::format("; from around step {} on it has risen by {}", seen->best.step,
                        with_interval(seen->rise));
    if (seen->training == HeldOut::Training::kFell) text += ", while the training loss fell";
  } else if (seen->course == HeldOut::Course::kFalling) {
    text += "; it still falls";
  } else if (std::isfinite(seen->rise.high)) {
    text += "; a rise since cannot be told from its scatter";
  } else if (seen->lowest.step != seen->last.step) {
    text += "; too few came after that to tell whether it rises";
  }
  text += ".";
  if (course.held_out().not_finite > 0)
    text += fmt::format(" {} held-out {} not finite.", course.held_out().not_finite,
                        course.held_out().not_finite == 1 ? "loss was" : "losses were");
  return text;
}

}  // namespace tycho::analyzer
