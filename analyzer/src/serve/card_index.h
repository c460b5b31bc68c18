#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "src/serve/run_card.h"
#include "tycho/trace/status.h"

namespace tycho::analyzer {

/// Name, size and time of the last change (nanoseconds) of each segment of a run, in order.
using SegmentTimes = std::vector<std::tuple<std::string, uint64_t, int64_t>>;
SegmentTimes segment_times(const std::string& run_directory);

/// Which build of the analyzer this is: the build ids of the program and the libraries it has
/// loaded, so that an index never shows what another analyzer said. Empty where the program has
/// none.
std::string program_identity();

/// $XDG_CACHE_HOME/tycho, or $HOME/.cache/tycho; empty where there is neither.
std::string default_cache_directory();
/// Whether a path, which need not exist, is a directory or lies below it.
bool lies_in(const std::string& path, const std::string& directory);

/// Cards of runs that have ended, kept between starts, so that a run need not be read again to be
/// listed: a file for each run in a directory of its own. A card is valid for one build of the
/// analyzer and as long as the segments have the names, sizes and times they had when they were
/// read. What is damaged, of another build, or missing is not found, and made again. Failures to
/// write are ignored: the next start reads the run. For one thread.
class CardIndex {
 public:
  /// `directory` is made with its parents, for its owner only; cards nobody asked for in 90 days
  /// are removed. `identity` as from program_identity(). Fails where it cannot be made, or
  /// `identity` is empty.
  static Result<std::unique_ptr<CardIndex>> open(const std::string& directory,
                                                 const std::string& identity);

  /// The card of the run, without name and version.
  std::optional<RunCard> find(const std::string& run_directory) const;
  /// Keeps the card that was made from segments which were `times` before they were read; does
  /// nothing where they have changed since, or the index lies in the run's directory.
  void keep(const std::string& run_directory, const SegmentTimes& times, const RunCard& card) const;

 private:
  CardIndex(std::string directory, std::string identity)
      : directory_(std::move(directory)), identity_(std::move(identity)) {}
  std::string file_of(const std::string& run) const;

  const std::string directory_;
  const std::string identity_;
};

}  // namespace tycho::analyzer
