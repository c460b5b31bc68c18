#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include "tycho/trace/status.h"

namespace tycho::analyzer {

/// What an export left out, because the trace is damaged.
struct ExportOutcome {
  uint64_t values = 0;
  uint64_t bytes_skipped = 0;
};

/// Long form, one value a line: `step,scope,statistic,value,stderr`. Scope is `run`, `layer:<module
/// path>`, `param:<parameter name>` or `index:<position>`; numbers have 17 digits and do not depend
/// on the locale; `nan` and `inf` are spelled so; an unknown standard error is empty. Fields with
/// commas, quotes or line ends are quoted as in RFC 4180.
Result<ExportOutcome> export_csv(const std::string& run, std::FILE* out);
/// One JSON object a line with the fields of the CSV; NaN and infinity are the strings "nan",
/// "inf", "-inf".
Result<ExportOutcome> export_jsonl(const std::string& run, std::FILE* out);
/// A TensorBoard event file: one scalar a value, tagged `<statistic>/<scope>`, as float32.
Result<ExportOutcome> export_tensorboard(const std::string& run, std::FILE* out);

}  // namespace tycho::analyzer
