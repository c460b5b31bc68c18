#include "incident_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/incident/quantities.h"
#include "src/loss/loss_alarms.h"
#include "src/number_text.h"

namespace tycho::analyzer {
namespace {

const Quantity& quantity_of(const Mover& mover) { return watched_quantities()[mover.quantity]; }

/// Movers of one quantity at one step, the one that is furthest outside first.
using Group = std::vector<Mover>;

double far_outside(const Mover& mover) {
  if (!mover.movement.finite()) return std::numeric_limits<double>::infinity();
  const double spreads = std::fabs(mover.movement.spreads());
  return std::isnan(spreads) ? 0 : spreads;
}

std::vector<Group> groups_of(const std::vector<Mover>& movers) {
  std::vector<Group> groups;
  for (const Mover& each : movers) {
    const auto found = std::find_if(groups.begin(), groups.end(), [&](const Group& group) {
      return group[0].movement.moved == each.movement.moved && group[0].quantity == each.quantity;
    });
    if (found == groups.end()) {
      groups.push_back({each});
    } else {
      found->push_back(each);
    }
  }
  for (Group& group : groups) {
    std::stable_sort(group.begin(), group.end(), [](const Mover& a, const Mover& b) {
      return far_outside(a) > far_outside(b);
    });
  }
  return groups;
}

std::string name_of(const Report& report, const Group& group) {
  const Quantity& quantity = quantity_of(group[0]);
  if (quantity.scope == v1::SCOPE_RUN) return quantity.words;
  std::string text = fmt::format("{} of {}", quantity.words, report.layer_label(group[0].entity));
  if (group.size() > 1)
    text += fmt::format(" and {} more layer{}", group.size() - 1, group.size() == 2 ? "" : "s");
  return text;
}

std::string value_text(const Mover& mover, double scaled) {
  if (std::isnan(scaled)) return "";
  if (std::isinf(scaled)) return "not finite";
  return number_text(from_scale(quantity_of(mover), scaled), 3);
}

/// "24 times"; empty where that says nothing.
std::string factor_text(const Mover& mover) {
  const Movement& movement = mover.movement;
  const double usual = from_scale(quantity_of(mover), movement.usual);
  const double value = from_scale(quantity_of(mover), movement.value);
  if (!movement.finite() || !(usual > 0) || !(value > 0)) return "";
  return fmt::format("{} times", number_text(value / usual, 2));
}

/// "12, 24 times its median of before and 14 of its spreads away".
std::string change_text(const Mover& mover) {
  const Movement& movement = mover.movement;
  std::string text = value_text(mover, movement.value);
  if (std::isnan(movement.usual)) return text;
  text += fmt::format(", against a usual value of {}", value_text(mover, movement.usual));
  const std::string factor = factor_text(mover);
  const double spreads = std::fabs(movement.spreads());
  if (!factor.empty()) text += fmt::format(" ({}", factor);
  if (!factor.empty() && std::isfinite(spreads))
    text += fmt::format(", {} spreads away", number_text(spreads, 2));
  return text + (factor.empty() ? "" : ")");
}

IncidentRow row_of(const Report& report, const Group& group) {
  const Mover& most = group[0];
  IncidentRow row;
  row.step = most.movement.moved;
  row.what = name_of(report, group);
  row.usual = value_text(most, most.movement.usual);
  row.seen = value_text(most, most.movement.value);
  if (const std::string factor = factor_text(most); !factor.empty())
    row.seen += fmt::format(" ({})", factor);
  const double spreads = std::fabs(most.movement.spreads());
  if (std::isfinite(spreads)) row.spreads = number_text(spreads, 2);
  int64_t within = std::numeric_limits<int64_t>::max();
  for (const Mover& each : group) within = std::min(within, each.movement.within);
  if (within >= 0) {
    row.within = fmt::format("{} at step {}",
                             std::isnan(most.movement.usual) ? "finite" : "in its range", within);
  }
  row.note = quantity_of(most).note;
  row.statistic = quantity_of(most).statistic;
  row.scope = scope_of(report, most);
  return row;
}

std::string listed(const Report& report, const std::vector<Group>& groups) {
  constexpr size_t kMost = 4;
  std::string text;
  for (size_t i = 0; i < groups.size() && i < kMost; ++i) {
    const bool last = i + 1 == groups.size();
    text += (i == 0 ? "" : last ? " and " : ", ") + name_of(report, groups[i]);
  }
  if (groups.size() > kMost) text += fmt::format(" and {} more", groups.size() - kMost);
  return text;
}

std::string rivals_sentence(const Report& report, const Incident& incident) {
  const auto rivals = incident.rivals();
  if (rivals.empty()) return "";
  const auto groups = groups_of(rivals);
  const Movement& first = groups[0][0].movement;
  std::string text =
      fmt::format("The order is uncertain: {} may have moved as early. ", listed(report, groups));
  const std::string who = rivals.size() == 1 ? "It" : "The first of these";
  text += first.within >= 0
              ? fmt::format(
                    "{} was last seen in its usual range at step {}, and outside at step "
                    "{}.",
                    who, first.within, first.moved)
              : fmt::format(
                    "{} was outside at step {}, and has no earlier observation to compare with.",
                    who, first.moved);
  return text;
}

std::string order_sentence(const Report& report, const Incident& incident) {
  const auto first = incident.first();
  const int64_t step = first.front().movement.moved;
  const auto groups = groups_of(first);
  const bool sure = incident.order() != Order::kUncertain;
  if (incident.compared == 0) {
    return first.size() == 1
               ? fmt::format(
                     "Of everything recorded, {} was the first to become non-finite, at step {}.",
                     name_of(report, groups[0]), step)
               : fmt::format(
                     "Their order cannot be told, because they became non-finite at the same "
                     "step, {}: {}.",
                     step, listed(report, groups));
  }
  if (first.size() == 1 && first[0].quantity == 0 && sure) {
    return fmt::format(
        "The loss left its range first, at step {}{}: nothing else that was recorded moved "
        "visibly before it. The data of that step were unusual, or something moved that was not "
        "recorded, or moved too little to be seen.",
        step, incident.finite ? fmt::format(" ({})", change_text(first[0])) : "");
  }
  if (first.size() == 1) {
    return fmt::format(
        "Of everything recorded, {} was seen to move first: at step {} it was {}.{}",
        name_of(report, groups[0]), step, change_text(first[0]),
        sure && incident.movers.size() > 1
            ? " Everything else that moved was still in its usual range at that step or later."
            : "");
  }
  return fmt::format(
      "It cannot be told which moved first, because they were observed at the same step, {}: {}.",
      step, listed(report, groups));
}

std::string basis_sentence(const Incident& incident) {
  if (incident.compared == 0) {
    return fmt::format(
        "With fewer than {} earlier observations, the usual range is not known: only values "
        "that were not finite could be seen.",
        Movement::kFewestBefore);
  }
  std::string text = fmt::format("{} series were compared with their own history before step {}",
                                 incident.compared, incident.from);
  if (incident.too_few > 0)
    text += fmt::format("; {} had too few values before it", incident.too_few);
  return text + ".";
}

}  // namespace

std::string scope_of(const Report& report, const Mover& mover) {
  if (quantity_of(mover).scope == v1::SCOPE_RUN) return "run";
  const auto id = static_cast<int>(mover.entity);
  return id < report.model.layer_size() ? "layer:" + report.model.layer(id).path() : "";
}

IncidentWords describe(const Report& report, const Incident& incident) {
  IncidentWords words;
  words.title = incident.finite
                    ? fmt::format("The loss left its range at step {}", incident.step)
                    : fmt::format("The loss first became non-finite at step {}", incident.step);
  if (incident.movers.empty()) {
    words.sentences.push_back(
        incident.compared == 0
            ? fmt::format("It cannot be told what moved first: no series was observed at {} or "
                          "more earlier steps.",
                          Movement::kFewestBefore)
            : "No recorded series was seen to leave its range around that step.");
    return words;
  }
  words.sentences.push_back(order_sentence(report, incident));
  if (std::string rivals = rivals_sentence(report, incident); !rivals.empty())
    words.sentences.push_back(std::move(rivals));
  words.sentences.push_back(
      basis_sentence(incident) +
      " This is the order in which they were seen to move; it says nothing about causes.");
  for (const Group& group : groups_of(incident.movers)) {
    if (words.rows.size() < IncidentWords::kMostRows) {
      words.rows.push_back(row_of(report, group));
    } else {
      ++words.left_out;
    }
  }
  return words;
}

std::string no_incident(const Report& report) {
  for (const LossAlarm& alarm : loss_alarms(report.loss)) {
    const bool known = std::any_of(report.incidents.begin(), report.incidents.end(),
                                   [&](const Incident& each) { return each.code == alarm.code; });
    if (alarm.code != "loss_diverged" || known) continue;
    uint64_t before = 0;
    for (const LossStretch& each : report.loss.stretches_from_the_first())
      before += each.end < alarm.at.step ? each.count : 0;
    if (before < Movement::kFewestBefore) {
      return fmt::format(
          "The loss diverged after {} observed {}: too few to establish a usual range, and so "
          "to tell what moved first.",
          before, before == 1 ? "loss" : "losses");
    }
    return "The loss diverged too gradually to name a step at which it left its range, so what "
           "moved before it cannot be told.";
  }
  return "";
}

}  // namespace tycho::analyzer
