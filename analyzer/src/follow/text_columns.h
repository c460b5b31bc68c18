#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace tycho::analyzer {

/// Columns that printable UTF-8 text takes on a terminal: two for East Asian wide characters and
/// pictographs, none for combining marks. Without a table of the terminal's own, this is a guess
/// for rare characters.
size_t columns(std::string_view text);
/// The beginning of `text` that takes at most `most` columns, with a mark of `...` where it was cut
/// and there is room for it.
std::string cut(std::string_view text, size_t most);
/// `text` on exactly `width` columns: cut, or filled with spaces at its end.
std::string fit(std::string_view text, size_t width);

/// A line of `width` columns, one stretch of the finite values of the series each, the newest at
/// the right. Between the least and the largest finite value, on a logarithmic scale where all are
/// positive and span a factor of more than 10. Eight heights of block characters, or of ASCII where
/// `unicode` is false.
std::string sparkline(const std::vector<double>& series, size_t width, bool unicode);

}  // namespace tycho::analyzer
