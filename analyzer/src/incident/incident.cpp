#include "src/incident/incident.h"

#include <algorithm>

namespace tycho::analyzer {

const char* to_string(Order order) {
  switch (order) {
    case Order::kUnknown:
      return "unknown";
    case Order::kFirst:
      return "first";
    case Order::kSameStep:
      return "same_step";
    case Order::kUncertain:
      return "uncertain";
  }
  return "unknown";
}

std::vector<Mover> Incident::first() const {
  std::vector<Mover> result;
  for (const Mover& each : movers) {
    if (each.movement.moved == movers.front().movement.moved) result.push_back(each);
  }
  return result;
}

std::vector<Mover> Incident::rivals() const {
  std::vector<Mover> result;
  if (movers.empty()) return result;
  const std::vector<Mover> earliest = first();
  const int64_t moved = earliest.front().movement.moved;
  // Of several at one step it is said that their order is not known; whoever may have been at that
  // step too adds nothing to it.
  int64_t before = moved;
  if (earliest.size() > 1) {
    before = -1;
    for (const Mover& each : earliest) before = std::max(before, each.movement.within);
  }
  for (const Mover& each : movers) {
    if (each.movement.moved > moved && each.movement.within < before) result.push_back(each);
  }
  return result;
}

Order Incident::order() const {
  if (movers.empty()) return Order::kUnknown;
  if (!rivals().empty()) return Order::kUncertain;
  return first().size() == 1 ? Order::kFirst : Order::kSameStep;
}

}  // namespace tycho::analyzer
