#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "src/live/stalled_parts.h"
#include "src/loss/loss_course.h"
#include "tycho/analyzer/alarm.h"
#include "tycho/analyzer/frame.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// Which alarms are raised, frame by frame (LiveJudge says which there are). It judges nothing
/// itself: the course of the loss is judged by loss_alarms(), the rest are facts, events and
/// findings of laws. What a single loss could undo is raised when kConfirming looks in a row say
/// so.
class AlarmWatch {
 public:
  static constexpr uint32_t kConfirming = 5;
  /// `over`: it was raised and is not any more.
  using Say = std::function<void(const Alarm& alarm, bool over)>;

  /// After each frame.
  void observe(const RunContext& context, const Frame& frame, const v1::Health& health,
               const Say& say);
  /// At a look at the laws, after observe() of its frame. `last`: no more frames will come, so that
  /// there is nothing to wait for.
  void look(const RunContext& context, const v1::Health& health,
            const std::vector<Finding>& findings, bool last, const Say& say);
  /// The most serious first; of the same severity by code and scope.
  std::vector<Alarm> raised() const;

 private:
  /// Alarms that are looked at together.
  enum class Group { kLoss, kFacts, kLaws };
  struct State {
    Group group = Group::kFacts;
    Alarm alarm;
    uint64_t seen = 0;     // looks that found it
    uint64_t missing = 0;  // looks in a row, up to the last, that did not
    bool raised = false;
  };

  void settle(Group group, std::vector<Alarm> found, bool last, const Say& say);
  void settle_loss(bool last, const Say& say);
  void settle_facts(const RunContext& context, const v1::Health& health, bool last, const Say& say);
  /// Something about the loss is about to be raised, or about to be over.
  bool loss_is_open() const;

  LossCourse course_;
  StalledParts stalled_;
  uint64_t not_finite_ = 0;
  size_t events_seen_ = 0;
  int first_not_finite_ = -1;                                    // among the events
  std::map<std::pair<std::string, std::string>, State> states_;  // by code and scope
};

}  // namespace tycho::analyzer
