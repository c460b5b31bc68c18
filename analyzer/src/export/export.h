#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::analyzer {

struct ExportOutcome {
  uint64_t values = 0;
  /// What is missing in the trace, or may be, in words.
  std::vector<std::string> losses;
};

/// Long form, one value a line: `step,scope,statistic,value,stderr`. Scope is `run`, `layer:<module
/// path>`, `param:<parameter name>` or `index:<position>`; numbers have 17 digits and do not depend
/// on the locale; `nan` and `inf` are spelled so; an unknown standard error is empty. Fields with
/// commas, semicolons, quotes, tabulators or line ends are quoted as in RFC 4180. Text that a
/// spreadsheet would take for a formula (it begins with = + - or @) has a ' before it; control
/// characters other than tabulators and line ends are written as \xNN.
Result<ExportOutcome> export_csv(const std::string& run, std::FILE* out);
/// One JSON object a line with the fields of the CSV; NaN and infinity are the strings "nan",
/// "inf", "-inf".
Result<ExportOutcome> export_jsonl(const std::string& run, std::FILE* out);
/// A TensorBoard event file: one scalar a value, tagged `<statistic>/<scope>`, as float32.
Result<ExportOutcome> export_tensorboard(const std::string& run, std::FILE* out);

}  // namespace tycho::analyzer
