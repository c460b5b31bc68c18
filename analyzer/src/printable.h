#pragma once

#include <string>
#include <string_view>

namespace tycho::analyzer {

/// Text that a terminal shows and does not obey: names come from the user's program or from a file
/// that anybody may have made. Control characters (C0 but for `keep`, DEL, C1), the marks that
/// reverse the direction of writing, line and paragraph separators and bytes that are no UTF-8 are
/// written as \xNN for each byte; a backslash stays as it is.
std::string printable(std::string_view text, std::string_view keep = "");

}  // namespace tycho::analyzer
