#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "segment_reader.h"
#include "tycho/trace/run_reader.h"

namespace tycho::trace {

/// One segment on its way to a MessageHandler: its descriptions, and its messages parsed, with
/// those left out that are not wanted. RunReader reads it at once, RunFollower as it grows.
class SegmentFeed {
 public:
  static Result<std::unique_ptr<SegmentFeed>> open(const std::string& path);

  /// Sees what was appended; fails as SegmentReader::refresh().
  Status refresh();
  /// The next advance() begins at the beginning.
  void rewind();
  /// SegmentReader::advance(); `stopped` is set where the handler wanted to stop.
  void advance(MessageHandler& handler, const ReadOptions& options, bool more_to_come,
               uint64_t most_bytes, bool* stopped);
  /// After the last advance(): completes skipped(), and hands it over unless `stopped`. False where
  /// the handler wanted to stop.
  bool finish(MessageHandler& handler, bool stopped);
  /// Closes the file: nothing can be read any more.
  void release() { reader_.reset(); }
  bool is_open() const { return reader_ != nullptr; }
  /// Everything that is there was passed.
  bool at_end() const { return reader_->position() >= reader_->size(); }
  uint64_t position() const { return reader_->position(); }
  FileIdentity identity() const { return identity_; }
  /// Whether a lock tells if its writer lives. Without, what grows is being written.
  bool has_locks() const { return has_locks_; }
  /// What stands at the end and cannot be read (yet), in the words of a read that ends here.
  std::optional<SkippedRegion> tail() const;

  SegmentInfo info;
  v1::RunDescription run;
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  std::optional<v1::ModelStructure> structure;
  bool has_descriptions = false;
  /// Steps from here on were recorded again by a later session.
  int64_t superseded_from = std::numeric_limits<int64_t>::max();
  std::vector<SkippedRegion> skipped;
  int64_t last_step_passed = -1;  ///< the largest that was met, wanted or not
  /// The largest that was handed over; none: nothing was.
  std::optional<int64_t> last_step_delivered;

 private:
  void look();
  void take_message(const SegmentReader::Message& message, MessageHandler& handler,
                    const ReadOptions& options, bool* stopped);
  bool takes(const ReadOptions& options, int64_t step);

  std::unique_ptr<SegmentReader> reader_;
  FileIdentity identity_;
  bool has_locks_ = true;
  uint64_t gap_ = 0;              ///< messages that are missing, of which no region is known yet
  size_t without_next_step_ = 0;  ///< first region behind which no step was read yet
  std::string probe_;
  // Reused, so that reading does not allocate for every message.
  v1::Record record_;
  v1::OptimizerSettings settings_;
  v1::Event event_;
  v1::Health health_;
  v1::ModelStructure structure_;
  v1::Finding finding_;
};

/// What is said of a segment that cannot be opened.
SkippedRegion unreadable_segment(const std::string& path, const Status& why);

/// What segments of one run say about each other, in the order of their numbers: a segment without
/// its own descriptions borrows those of a neighbour, and sessions that were resumed supersede what
/// was recorded before.
void relate(const std::vector<std::unique_ptr<SegmentFeed>>& segments);

}  // namespace tycho::trace
