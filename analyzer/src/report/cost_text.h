#pragma once

#include <string>

#include "tycho/v1/record.pb.h"

namespace tycho::analyzer {

/// What Tycho cost a run, in a sentence or two: CPU time and wall time from the construction of the
/// session to its end, as parts of the whole, with "at least" where hooks slowed the trainer down
/// by more than could be told. Says so where nothing is known (a trace without Health messages).
std::string cost_text(const v1::Health& health);

}  // namespace tycho::analyzer
