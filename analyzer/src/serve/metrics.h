#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/alerts/alert_sender.h"
#include "src/serve/run_card.h"

namespace tycho::analyzer {

/// The cards as metrics in Prometheus' text format (0.0.4). How many series there are is bounded:
/// of at most `most_runs` runs, live ones first, then the newest, each has a few gauges and one for
/// each law that was judged; all runs are counted by state. What is not known has no sample.
/// `now_ns`: the wall clock, for the lag.
std::string metrics_text(const std::vector<std::shared_ptr<const RunCard>>& cards, size_t most_runs,
                         int64_t now_ns, const AlertCounters& alerts = {});

}  // namespace tycho::analyzer
