#pragma once

#include <string>
#include <vector>

#include "src/loss/held_out.h"
#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {

/// What the held-out loss asks for, at most one: overfitting (warning; it has risen while the
/// training loss fell), held_out_rose (warning; it has risen, and the training loss did not fall as
/// far as its noise tells), held_out_falls (note). See held_out().
std::vector<LossAlarm> held_out_alarms(const LossCourse& course);

/// One sentence: where the held-out loss was lowest and ended, and whether it has risen since.
/// Empty where none was given.
std::string describe_held_out(const LossCourse& course);

/// "0.08 [0.05, 0.11]".
std::string with_interval(const Difference& difference);

}  // namespace tycho::analyzer
