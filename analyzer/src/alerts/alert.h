#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tycho/analyzer/alarm.h"

namespace tycho::analyzer {

/// An alarm of a run, as it is told to somebody who does not look at a page.
struct Alert : Alarm {
  std::string run;    ///< its name: chosen by the user, or its path
  std::string path;   ///< as it is followed
  std::string id;     ///< of the run
  std::string state;  ///< live, finished, died, ...
  int64_t last_step = -1;
  double loss = kUnknown;  ///< the last one
  uint64_t left_out = 0;   ///< alerts since the one before that the limit did not let through
};

/// One line: an object with the fields above, by their names. What is not known, or is not finite,
/// is null. Bytes that are no UTF-8 are replaced.
std::string alert_json(const Alert& alert);

/// NAME=VALUE for the environment of a program: TYCHO_ALARM_CODE, _SEVERITY, _TITLE, _TEXT, _SCOPE,
/// _STEP, _VALUE, _RUN, _PATH, _ID, _STATE, _LAST_STEP and _LOSS. Control characters are made
/// printable, and values are cut at 4000 bytes; what is not known is empty.
std::vector<std::string> alert_environment(const Alert& alert);

}  // namespace tycho::analyzer
