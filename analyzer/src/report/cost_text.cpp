#include "cost_text.h"

#include <fmt/format.h>

namespace tycho::analyzer {
namespace {

// "12 % more than the trainer alone", or "3.1 times the trainer alone".
std::string compared(double part, double whole) {
  const double alone = whole - part;
  if (!(part >= 0) || !(alone > 0)) return "";
  const double more = part / alone;
  return more < 1 ? fmt::format(", {:.2g} % more than the trainer alone", 100 * more)
                  : fmt::format(", {:.2g} times what the trainer alone takes", 1 + more);
}

}  // namespace

std::string cost_text(const v1::Health& health) {
  const double wall = health.training_seconds();
  const double tycho_wall = health.tycho_seconds();
  const double cpu = health.process_cpu_seconds();
  const double tycho_cpu = health.tycho_cpu_seconds();
  // A part that is larger than the whole comes from a writer that did not count the first step, or
  // from a damaged trace.
  if (!(wall > 0) || !(tycho_wall <= wall) || !(tycho_cpu <= cpu)) {
    return "The trace does not record what Tycho cost.";
  }
  if (!(cpu > 0)) {
    return fmt::format(
        "At least {:.3g} s of {:.3g} s on the training thread; this trace does not record how "
        "much hooks slow down other work.",
        tycho_wall, wall);
  }
  const char* at_least = health.cost_is_lower_bound() ? "at least " : "";
  std::string text = fmt::format(
      "From construction to close: {}{:.3g} s of {:.3g} s of CPU time{}; {}{:.3g} s of {:.3g} s of "
      "wall time.",
      at_least, tycho_cpu, cpu, compared(tycho_cpu, cpu), at_least, tycho_wall, wall);
  if (health.cost_is_lower_bound()) {
    text +=
        " \"At least\": every step that could be compared had hooks, so their effect beyond "
        "their own time is not known.";
  }
  return text;
}

}  // namespace tycho::analyzer
