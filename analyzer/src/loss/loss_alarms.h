#pragma once

#include <string>
#include <vector>

#include "src/loss/loss_course.h"
#include "tycho/analyzer/alarm.h"

namespace tycho::analyzer {

/// Something about the course of the loss, in words, with the step and the size.
struct LossAlarm {
  std::string code;  ///< stable: loss_not_finite, loss_diverged, loss_rose, loss_jumped,
                     ///< loss_spikes, loss_stuck, loss_at_floor, overfitting, held_out_rose,
                     ///< held_out_falls
  Severity severity = Severity::kNote;
  std::string title;
  std::string text;
  LossPoint at;  ///< where it began
};

/// What is wrong with the course of the loss, the most serious first; empty where nothing is, or
/// too few losses were observed to tell.
///
/// loss_not_finite (alarm; a warning where the loss was finite again at the end): from one loss on.
/// loss_diverged (alarm): within a few observed losses it left the range of all before by ten times
/// its extent (more where few came before), or by a hundred times that of the first fifth, third or
/// half of the run, and it ended outside; or it ended above five times all before and the squared
/// norm of the weights doubled. Downwards counts too.
/// The rest takes 64 losses. loss_rose: of what it fell to its lowest level, half at least was lost
/// again. loss_jumped: it left its range for good, or for a twentieth of the run. loss_spikes: for
/// less. loss_stuck: it fell by less than a fifth, and over the last 70 % of the observed losses by
/// less than 1 % of its level. loss_at_floor (note): see progress_end(). Where
/// a fall is said to be small, its upper 95 % limit is: noise does not pass for rest. What the
/// held-out loss asks for is held_out_alarms(); held_out_rose only where the training loss did not
/// rise or break, and nothing of it where that diverged.
std::vector<LossAlarm> loss_alarms(const LossCourse& course);

/// One sentence: where the loss began and ended. Empty where none was observed.
std::string describe_loss(const LossCourse& course);

}  // namespace tycho::analyzer
