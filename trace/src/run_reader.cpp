#include "tycho/trace/run_reader.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <filesystem>
#include <locale>
#include <optional>
#include <sstream>

#include "segment_reader.h"
#include "writer_process.h"

namespace tycho::trace {
namespace {

constexpr std::string_view kProbePrefix = "/probe/";
// What a killed writer may have lost whose segment does not say so: chunks were closed after two
// seconds, and looked at twice in a second.
constexpr double kFormerAtRiskSeconds = 2.5;
// A longer time would be an error of the file.
constexpr double kMaxAtRiskSeconds = 3600;

double at_risk_seconds(const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find("at_risk_seconds");
  double seconds = 0;
  if (found == metadata.end()) return kFormerAtRiskSeconds;
  std::istringstream text(found->second);
  text.imbue(std::locale::classic());
  return text >> seconds && seconds > 0 && seconds <= kMaxAtRiskSeconds ? seconds
                                                                        : kFormerAtRiskSeconds;
}

bool writer_lives(SegmentReader* segment) {
  if (segment->locked()) return true;
  const auto& metadata = segment->run_metadata();
  const auto writer = metadata.find("writer");
  return writer != metadata.end() && is_alive(writer->second);
}

// A field of a message that is itself a message takes more than a hundred bytes of memory once it
// is read, and may take two in the file. Records have few of them and these are large.
bool is_plausible_message(std::string_view message) {
  constexpr size_t kFreeFields = size_t{1} << 16;
  constexpr size_t kBytesPerField = 64;
  if (message.size() > static_cast<size_t>(std::numeric_limits<int>::max())) return false;
  if (message.size() / 2 <= kFreeFields) return true;
  google::protobuf::io::CodedInputStream fields(reinterpret_cast<const uint8_t*>(message.data()),
                                                static_cast<int>(message.size()));
  size_t left = kFreeFields + message.size() / kBytesPerField;
  while (const uint32_t tag = fields.ReadTag()) {
    if (left-- == 0 || !google::protobuf::internal::WireFormatLite::SkipField(&fields, tag))
      return false;
  }
  return true;
}

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
      info.being_written = !info.sealed && writer_lives(segment.reader.get());
      if (!info.sealed && !info.being_written)
        info.at_risk_seconds = at_risk_seconds(segment.reader->run_metadata());
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
    for (; without_next_step_ < pending_.size(); ++without_next_step_) {
      skipped_[pending_[without_next_step_]].before_step = step;
    }
    return step >= options.from_step && step <= options.to_step &&
           !(options.skip_superseded && step >= segment.superseded_from);
  }

  bool report_pending(MessageHandler& handler) {
    bool go_on = true;
    for (size_t pending : pending_) go_on = handler.on_skipped(skipped_[pending]) && go_on;
    pending_.clear();
    without_next_step_ = 0;
    return go_on;
  }

  Status read_segment(Segment* segment, SegmentInfo* info, MessageHandler& handler,
                      const ReadOptions& options, bool* stopped) {
    int64_t last_step = -1;
    uint64_t gap = 0;
    pending_.clear();
    without_next_step_ = 0;
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
      // The last record of a segment that is being written need not be whole yet.
      if (info->being_written && end == info->bytes) return;
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
        return is_plausible_message(message.data) &&
               parsed->ParseFromArray(message.data.data(), static_cast<int>(message.data.size()));
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
  std::vector<size_t> pending_;   ///< skipped regions of this segment: reported at its end, when
                                  ///< their extent is known
  size_t without_next_step_ = 0;  ///< first pending region behind which no step was read yet
  std::string probe_;
  // Reused, so that reading does not allocate for every message.
  v1::Record record_;
  v1::OptimizerSettings settings_;
  v1::Event event_;
  v1::Health health_;
  v1::ModelStructure structure_;
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
