#pragma once

#include <string>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// One character that stands for a verdict.
const char* mark(Verdict verdict);
/// With the terminal's colour for a verdict, where `colour` is set.
std::string paint(const std::string& text, Verdict verdict, bool colour);
/// Without control characters: names from a trace must not drive the terminal.
std::string clean(const std::string& text);
/// Broken at spaces to `width` columns, continued at `indent`; cleaned.
std::string wrap(const std::string& text, size_t indent, size_t width);

}  // namespace tycho::analyzer
