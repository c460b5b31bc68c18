#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report.h"

namespace tycho::analyzer {

/// Events of the run that say the same of several layers or parameters.
struct Happening {
  v1::Event::Kind kind = v1::Event::KIND_UNSPECIFIED;
  std::string what;                  ///< a sentence for people, names of layers left out
  std::vector<std::string> modules;  ///< where: module paths, or names of parameters of the root
  size_t parameters = 0;             ///< how many parameters; 0: it is about layers or the run
  std::string remedy;                ///< what to do; empty: nothing is known
  int64_t first_step = -1;
  uint64_t times = 0;  ///< of the layer or parameter where it happened most often
};

/// Events by reason, in the order of their first step. What follows from another one of the same
/// parameter for the same reason (gradient noise from per-example gradients) is said once.
std::vector<Happening> happenings(const Report& report);

/// "encoder.0, encoder.2 and 4 more (12 parameters)"; empty for the run.
std::string where(const Happening& happening, size_t most_modules);

/// Kinds in the order in which a report shows them, under these headings.
struct HappeningGroup {
  const char* title;
  std::vector<Happening> happenings;
};
std::vector<HappeningGroup> happening_groups(const Report& report);

}  // namespace tycho::analyzer
