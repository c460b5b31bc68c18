#include "tycho/trace/run_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "segment_reader.h"

namespace tycho::trace {
namespace {

constexpr std::string_view kProbePrefix = "/probe/";

struct Segment {
  std::unique_ptr<SegmentReader> reader;
  v1::RunDescription run;
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  std::optional<v1::ModelStructure> structure;
  bool has_descriptions = false;
  int64_t superseded_from = std::numeric_limits<int64_t>::max();
};

class Reader : public RunReader {
 public:
  Status load(const std::vector<std::string>& paths) {
    std::string first_problem;
    for (const std::string& path : paths) {
      SegmentInfo info;
      info.name = std::filesystem::path(path).filename().string();
      auto opened = SegmentReader::open(path);
      if (!opened.ok()) {
        if (first_problem.empty()) first_problem = opened.status().message();
        SkippedRegion region;
        region.segment = info.name;
        std::error_code error;
        const auto bytes = std::filesystem::file_size(path, error);
        region.end = error ? 0 : bytes;
        region.why = opened.status().message();
        unreadable_.push_back(std::move(region));
        continue;
      }
      Segment segment;
      segment.reader = std::move(opened).value();
      const auto& attachments = segment.reader->attachments();
      const auto parse = [&](const char* name, google::protobuf::MessageLite* message) {
        const auto found = attachments.find(name);
        return found != attachments.end() && message->ParseFromString(found->second);
      };
      segment.has_descriptions = parse("run_description", &segment.run);
      segment.has_descriptions &= parse("model_description", &segment.model);
      segment.has_descriptions &= parse("statistic_registry", &segment.registry);
      v1::ModelStructure structure;
      if (parse("model_structure", &structure)) segment.structure = structure;
      info.bytes = segment.reader->size();
      info.sealed = segment.reader->sealed();
      segments_.push_back(std::move(segment));
      infos_.push_back(std::move(info));
    }
    if (segments_.empty()) return Status(Status::Code::kNotATrace, first_problem);
    // A segment without its own descriptions borrows those of a neighbour of the same run.
    const auto intact =
        std::find_if(segments_.begin(), segments_.end(),
                     [](const Segment& segment) { return segment.has_descriptions; });
    for (size_t i = 0; i < segments_.size(); ++i) {
      Segment& segment = segments_[i];
      if (!segment.has_descriptions && intact != segments_.end()) {
        const Segment& lender =
            i > 0 && segments_[i - 1].has_descriptions ? segments_[i - 1] : *intact;
        segment.run = lender.run;
        segment.run.set_resumed(false);
        segment.model = lender.model;
        segment.registry = lender.registry;
        segment.has_descriptions = true;
      }
    }
    // The later segments of a resumed session carry the session's description too: only a change of
    // resume_step or start time marks a new session, and superseding twice with the same step is
    // harmless.
    int64_t from = std::numeric_limits<int64_t>::max();
    for (size_t i = segments_.size(); i-- > 0;) {
      segments_[i].superseded_from = from;
      const bool starts_session =
          segments_[i].run.resumed() &&
          (i == 0 || !segments_[i - 1].run.resumed() ||
           segments_[i - 1].run.start_time_ns() != segments_[i].run.start_time_ns());
      infos_[i].resumed = starts_session;
      infos_[i].resume_step = segments_[i].run.resume_step();
      if (starts_session) from = std::min(from, segments_[i].run.resume_step());
    }
    return Status();
  }

  Status read(MessageHandler& handler, const ReadOptions& options) override {
    skipped_ = unreadable_;
    for (const SkippedRegion& region : skipped_) {
      if (!handler.on_skipped(region)) return Status();
    }
    for (size_t i = 0; i < segments_.size(); ++i) {
      Segment& segment = segments_[i];
      SegmentInfo& info = infos_[i];
      info.first_step = info.last_step = -1;
      info.messages = 0;
      if (!handler.on_segment(info, segment.run, segment.model, segment.registry)) return Status();
      if (segment.structure &&
          !handler.on_structure(*segment.structure, segment.run.start_time_ns()))
        return Status();
      bool stopped = false;
      if (Status status = read_segment(&segment, &info, handler, options, &stopped); !status.ok())
        return status;
      if (stopped) return Status();
    }
    return Status();
  }

  const std::vector<SkippedRegion>& skipped() const override { return skipped_; }
  const std::vector<SegmentInfo>& segments() const override { return infos_; }
  const v1::RunDescription& run() const override { return segments_.back().run; }
  const v1::ModelDescription& model() const override { return segments_.back().model; }
  const v1::StatisticRegistry& registry() const override { return segments_.back().registry; }

 private:
  // Whether a message of this step is wanted; keeps the segment's step range.
  bool takes(const Segment& segment, SegmentInfo* info, const ReadOptions& options, int64_t step) {
    if (info->first_step < 0 || step < info->first_step) info->first_step = step;
    info->last_step = std::max(info->last_step, step);
    ++info->messages;
    for (size_t pending : pending_) {
      if (skipped_[pending].before_step < 0) skipped_[pending].before_step = step;
    }
    return step >= options.from_step && step <= options.to_step &&
           !(options.skip_superseded && step >= segment.superseded_from);
  }

  bool report_pending(MessageHandler& handler) {
    bool go_on = true;
    for (size_t pending : pending_) go_on = handler.on_skipped(skipped_[pending]) && go_on;
    pending_.clear();
    return go_on;
  }

  Status read_segment(Segment* segment, SegmentInfo* info, MessageHandler& handler,
                      const ReadOptions& options, bool* stopped) {
    int64_t last_step = -1;
    uint64_t gap = 0;
    pending_.clear();
    SegmentReader::Callbacks callbacks;
    callbacks.wanted = [&](int64_t first, int64_t last) {
      const bool wanted = last >= options.from_step && first <= options.to_step &&
                          !(options.skip_superseded && first >= segment->superseded_from);
      if (!wanted) {
        if (info->first_step < 0 || first < info->first_step) info->first_step = first;
        info->last_step = std::max(info->last_step, last);
      }
      return wanted;
    };
    callbacks.on_gap = [&](uint64_t messages) { gap += messages; };
    callbacks.on_skipped = [&](uint64_t begin, uint64_t end, std::string why) {
      SkippedRegion region;
      region.segment = info->name;
      region.begin = begin;
      region.end = end;
      region.why = std::move(why);
      region.after_step = last_step;
      skipped_.push_back(std::move(region));
      pending_.push_back(skipped_.size() - 1);
    };
    callbacks.on_message = [&](const SegmentReader::Message& message) {
      const auto parse = [&](auto* parsed) {
        return parsed->ParseFromArray(message.data.data(), static_cast<int>(message.data.size()));
      };
      const auto take_step = [&](int64_t step) {
        const bool wanted = takes(*segment, info, options, step);
        last_step = std::max(last_step, step);
        if (gap > 0 && !pending_.empty()) {
          skipped_[pending_.back()].messages += gap;
          gap = 0;
        }
        return wanted;
      };
      const std::string& topic = *message.topic;
      if (topic.compare(0, kProbePrefix.size(), kProbePrefix) == 0) {
        if (!parse(&record_)) return true;
        if (take_step(record_.step()) && !*stopped) {
          probe_.assign(topic, kProbePrefix.size(), std::string::npos);
          *stopped = !handler.on_record(probe_, record_, message.publish_time);
        }
      } else if (topic == "/optimizer") {
        if (!parse(&settings_)) return true;
        // Settings hold until the next message, so those before the range are needed too.
        const bool superseded =
            options.skip_superseded && settings_.step() >= segment->superseded_from;
        take_step(settings_.step());
        if (!superseded && settings_.step() <= options.to_step && !*stopped) {
          *stopped = !handler.on_optimizer(settings_, message.publish_time);
        }
      } else if (topic == "/events") {
        if (parse(&event_) && take_step(event_.step()) && !*stopped) {
          *stopped = !handler.on_event(event_, message.publish_time);
        }
      } else if (topic == "/health") {
        if (parse(&health_) && take_step(health_.step()) && !*stopped) {
          *stopped = !handler.on_health(health_, message.publish_time);
        }
      } else if (topic == "/structure") {
        ++info->messages;
        if (parse(&structure_)) *stopped = !handler.on_structure(structure_, message.publish_time);
      }
      return !*stopped;
    };
    Status status = segment->reader->walk(callbacks);
    info->chunks = segment->reader->chunks();
    info->compression = segment->reader->compression();
    if (gap > 0 && status.ok() && !*stopped) {
      if (pending_.empty()) {
        SkippedRegion region;
        region.segment = info->name;
        region.why = "sequence numbers have gaps";
        region.after_step = info->first_step;
        region.before_step = info->last_step;
        skipped_.push_back(std::move(region));
        pending_.push_back(skipped_.size() - 1);
      }
      skipped_[pending_.back()].messages += gap;
    }
    if (!report_pending(handler)) *stopped = true;
    return status;
  }

  std::vector<Segment> segments_;
  std::vector<SegmentInfo> infos_;
  std::vector<SkippedRegion> unreadable_;
  std::vector<SkippedRegion> skipped_;
  std::vector<size_t> pending_;  ///< skipped regions of this segment: reported at its end, when
                                 ///< their extent is known
  std::string probe_;
  // Reused, so that reading does not allocate for every message.
  v1::Record record_;
  v1::OptimizerSettings settings_;
  v1::Event event_;
  v1::Health health_;
  v1::ModelStructure structure_;
};

}  // namespace

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
