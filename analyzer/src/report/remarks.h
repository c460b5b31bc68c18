#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "report.h"
#include "src/loss/loss_alarms.h"

namespace tycho::analyzer {

/// Something a reader should know that needs no law: how the loss went, numbers that are not
/// finite, dead units, what failed, what was lost.
struct Remark {
  std::string code;  ///< stable, lower_snake_case
  Severity severity = Severity::kWarning;
  std::string title;
  std::string text;
  int64_t step = -1;        ///< where it began; -1: no step of its own
  double value = kUnknown;  ///< its size there
  std::string statistic;    ///< of the chart that shows it; may be empty
  std::string scope;
};

/// The most serious first; of the same severity, the loss first.
std::vector<Remark> remarks(const Report& report);

/// Those whose code no decision of the report has: the others would say the same again.
std::vector<Remark> without_decided(std::vector<Remark> remarks, const Report& report);

/// The run is broken: what laws say of it is no ground for advice.
bool is_broken(const std::vector<Remark>& remarks);

/// The state of the run and of the trace in a few sentences: the loss, how many laws could be
/// tested, what is missing.
std::vector<std::string> in_short(const Report& report);

/// What to say where no loss is known: that nothing is missing, and whether the run is still being
/// written.
std::string no_known_loss(const Report& report);

}  // namespace tycho::analyzer
