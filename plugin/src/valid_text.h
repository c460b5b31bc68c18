#pragma once

#include <string>

namespace tycho {

/// The text as UTF-8, which is all that a trace holds: bytes that are none are written out, as in
/// "\\xff". Valid text stays as it is. No allocation but the result's, no error.
std::string valid_text(const std::string& text);

}  // namespace tycho
