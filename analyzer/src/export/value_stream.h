#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "export.h"
#include "tycho/trace/run_reader.h"

namespace tycho::analyzer {

/// One recorded value.
struct Value {
  int64_t step = 0;
  int64_t time_ns = 0;
  const std::string* scope = nullptr;
  const std::string* statistic = nullptr;
  double value = 0;
  double standard_error = 0;  ///< NaN: unknown
};

/// Reads a run and hands over every value in recorded order. Return false to stop.
Result<ExportOutcome> for_each_value(const std::string& run,
                                     const std::function<bool(const Value&)>& take);

/// The error of a stream that could not be written.
Status write_failure();

}  // namespace tycho::analyzer
