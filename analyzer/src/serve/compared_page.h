#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::analyzer {

/// Most runs that are compared on a page.
inline constexpr size_t kMostCompared = 20;

/// The page of `tycho compare` for these runs, as they are now. Reads all of them: costs as much as
/// a report of each, and memory as their digests. `gives_up` is asked now and then, and ends it
/// with a failure.
Result<std::string> compared_page(const std::vector<std::string>& directories,
                                  const std::function<bool()>& gives_up);

}  // namespace tycho::analyzer
