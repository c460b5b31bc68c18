#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tycho::examples {

/// A text as indices into the alphabet of the bytes that occur in it.
struct Text {
  std::string alphabet;          ///< ascending
  std::vector<int64_t> symbols;  ///< one per byte of the text
};

/// Reads the file `path`, or, where `path` is empty, this repository's own documentation and
/// sources, one after the other. Throws std::runtime_error where there is nothing to read.
Text load_text(const std::string& path);

}  // namespace tycho::examples
