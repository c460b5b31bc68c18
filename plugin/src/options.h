#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tycho/session_options.h"

namespace tycho {

/// No LibTorch tensor has more dimensions than this.
inline constexpr int64_t kLargestBatchDim = 63;

/// In MiB: a number of bytes fits 64 bits.
inline constexpr int64_t kLargestTapeMemory = int64_t{1} << 40;

/// TYCHO_DISABLE is set to something other than 0.
bool disabled_by_environment();
/// `options` with every TYCHO_<FIELD> of the environment applied. Throws OptionError.
SessionOptions with_environment(SessionOptions options);
/// One sentence for each variable of the environment that begins with TYCHO_ and is none of these,
/// with the nearest that is.
std::vector<std::string> unknown_variables();
/// Every field as text, for the run description.
std::map<std::string, std::string> option_texts(const SessionOptions& options);
/// Glob: `*` is any run of characters, `?` any one.
bool matches(const std::string& pattern, const std::string& text);

}  // namespace tycho
