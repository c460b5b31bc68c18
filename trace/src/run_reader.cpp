#include "tycho/trace/run_reader.h"

#include <fmt/format.h>

#include <filesystem>
#include <limits>

#include "segment_feed.h"

namespace tycho::trace {
namespace {

class Reader : public RunReader {
 public:
  Status load(const std::vector<std::string>& paths) {
    std::string first_problem;
    for (const std::string& path : paths) {
      auto opened = SegmentFeed::open(path);
      if (opened.ok()) {
        segments_.push_back(std::move(opened).value());
        continue;
      }
      if (first_problem.empty()) first_problem = opened.status().message();
      unreadable_.push_back(unreadable_segment(path, opened.status()));
    }
    if (segments_.empty()) return Status(Status::Code::kNotATrace, first_problem);
    relate(segments_);
    collect();
    return Status();
  }

  Status read(MessageHandler& handler, const ReadOptions& options) override {
    for (const auto& segment : segments_) segment->rewind();
    bool stopped = false;
    for (const SkippedRegion& region : unreadable_)
      stopped = stopped || !handler.on_skipped(region);
    for (size_t i = 0; i < segments_.size() && !stopped; ++i) {
      SegmentFeed& segment = *segments_[i];
      stopped = !handler.on_segment(segment.info, segment.run, segment.model, segment.registry) ||
                (segment.structure &&
                 !handler.on_structure(*segment.structure, segment.run.start_time_ns()));
      if (stopped) break;
      segment.advance(handler, options, false, std::numeric_limits<uint64_t>::max(), &stopped);
      stopped = !segment.finish(handler, stopped);
    }
    collect();
    return Status();
  }

  const std::vector<SkippedRegion>& skipped() const override { return skipped_; }
  const std::vector<SegmentInfo>& segments() const override { return infos_; }
  const v1::RunDescription& run() const override { return segments_.back()->run; }
  const v1::ModelDescription& model() const override { return segments_.back()->model; }
  const v1::StatisticRegistry& registry() const override { return segments_.back()->registry; }

 private:
  void collect() {
    infos_.clear();
    skipped_ = unreadable_;
    for (const auto& segment : segments_) {
      infos_.push_back(segment->info);
      skipped_.insert(skipped_.end(), segment->skipped.begin(), segment->skipped.end());
    }
  }

  std::vector<std::unique_ptr<SegmentFeed>> segments_;
  std::vector<SegmentInfo> infos_;
  std::vector<SkippedRegion> unreadable_;
  std::vector<SkippedRegion> skipped_;
};

}  // namespace

std::vector<std::string> losses(const std::vector<SegmentInfo>& segments,
                                const std::vector<SkippedRegion>& skipped) {
  std::vector<std::string> lines;
  for (const SkippedRegion& region : skipped) {
    const std::string steps =
        region.after_step < 0 && region.before_step < 0 ? ""
        : region.after_step < 0 ? fmt::format(" before step {}", region.before_step)
        : region.before_step < 0
            ? fmt::format(" after step {}", region.after_step)
            : fmt::format(" between step {} and step {}", region.after_step, region.before_step);
    std::string line = region.begin < region.end
                           ? fmt::format("{}: bytes {} to {} cannot be read ({})", region.segment,
                                         region.begin, region.end, region.why)
                           : fmt::format("{}: {}", region.segment, region.why);
    line += region.messages > 0 ? fmt::format("; {} messages{} are lost", region.messages, steps)
            : steps.empty()     ? "; it is not known how many messages are lost"
                                : fmt::format("; messages{} may be lost", steps);
    lines.push_back(std::move(line));
  }
  for (const SegmentInfo& segment : segments) {
    if (segment.at_risk_seconds <= 0) continue;
    lines.push_back(fmt::format(
        "{}: not sealed: the writer died; up to {:g} s of steps {} may be missing", segment.name,
        segment.at_risk_seconds,
        segment.last_step < 0 ? "before it" : fmt::format("after step {}", segment.last_step)));
  }
  return lines;
}

Result<std::unique_ptr<RunReader>> RunReader::open(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return Status(Status::Code::kNotFound, fmt::format("{}: no such file or directory", path));
  }
  if (error) return Status(Status::Code::kIoError, fmt::format("{}: {}", path, error.message()));
  std::vector<std::string> paths;
  if (std::filesystem::is_directory(status)) {
    auto names = list_segments(path);
    if (!names.ok()) return names.status();
    for (const std::string& name : names.value())
      paths.push_back((std::filesystem::path(path) / name).string());
    if (paths.empty()) {
      return Status(
          Status::Code::kNotATrace,
          fmt::format("{} holds no trace: there is no segment (000000.mcap) in it", path));
    }
  } else {
    paths.push_back(path);
  }
  auto reader = std::make_unique<Reader>();
  if (Status loaded = reader->load(paths); !loaded.ok()) return loaded;
  return std::unique_ptr<RunReader>(std::move(reader));
}

}  // namespace tycho::trace
