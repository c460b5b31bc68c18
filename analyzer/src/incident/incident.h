#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "src/incident/movement.h"

namespace tycho::analyzer {

/// A recorded series that left its own earlier range about an incident.
struct Mover {
  size_t quantity = 0;  ///< position in watched_quantities(); 0: the loss
  uint32_t entity = 0;  ///< the layer; 0 at scope run
  Movement movement;
};

/// What is known of which series moved first.
enum class Order {
  kUnknown,    ///< nothing moved that could be compared with its course before
  kFirst,      ///< one series was outside its range while all others that moved were still inside
  kSameStep,   ///< several were first seen outside at the same step
  kUncertain,  ///< others may have moved as early: they were not seen inside then
};
const char* to_string(Order order);  ///< unknown, first, same_step, uncertain

/// What was recorded about a step at which the loss went wrong, in the order of the steps. An order
/// in time: it does not say what caused what.
struct Incident {
  std::string code;     ///< of the remark about the loss that it explains: loss_spikes, ...
  int64_t step = -1;    ///< at which the loss was seen far outside its range, or not finite
  int64_t from = -1;    ///< the first step of the window that was searched
  bool finite = true;   ///< the loss was, at `step`
  double size = 0;      ///< of the loss's rise over the median of before; infinite: not finite
  size_t compared = 0;  ///< series that could be compared with their course before
  size_t too_few = 0;   ///< series with too few observations before
  std::vector<Mover> movers;  ///< by the step at which they were first seen outside

  Order order() const;
  /// Those that were first seen outside at the earliest step.
  std::vector<Mover> first() const;
  /// Those that were seen outside later, but not in their usual range at the earliest step or after
  /// it: they may have moved as early. Where several share that step, only those that may have
  /// moved before it.
  std::vector<Mover> rivals() const;
};

}  // namespace tycho::analyzer
