#include "segment_feed.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <filesystem>
#include <locale>
#include <sstream>

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

}  // namespace

Result<std::unique_ptr<SegmentFeed>> SegmentFeed::open(const std::string& path) {
  auto opened = SegmentReader::open(path);
  if (!opened.ok()) return opened.status();
  auto feed = std::make_unique<SegmentFeed>();
  feed->info.name = std::filesystem::path(path).filename().string();
  feed->reader_ = std::move(opened).value();
  feed->reader_->rewind();
  feed->identity_ = feed->reader_->identity();
  feed->look();
  return feed;
}

Status SegmentFeed::refresh() {
  if (Status status = reader_->refresh(); !status.ok()) return status;
  look();
  return Status();
}

// What the file says of itself as it is now.
void SegmentFeed::look() {
  if (!has_descriptions) {
    const auto& attachments = reader_->attachments();
    const auto parse = [&](const char* name, google::protobuf::MessageLite* message) {
      const auto found = attachments.find(name);
      return found != attachments.end() && message->ParseFromString(found->second);
    };
    has_descriptions = parse("run_description", &run);
    has_descriptions &= parse("model_description", &model);
    has_descriptions &= parse("statistic_registry", &registry);
    v1::ModelStructure known;
    if (parse("model_structure", &known)) structure = known;
  }
  info.bytes = reader_->size();
  info.sealed = reader_->sealed();
  has_locks_ = reader_->run_metadata().count("writer") == 0;
  info.being_written = !info.sealed && writer_lives(reader_.get());
  info.at_risk_seconds =
      info.sealed || info.being_written ? 0 : at_risk_seconds(reader_->run_metadata());
}

void SegmentFeed::rewind() {
  reader_->rewind();
  info.first_step = info.last_step = last_step_passed = -1;
  info.messages = 0;
  last_step_delivered.reset();
  skipped.clear();
  gap_ = 0;
  without_next_step_ = 0;
}

// Whether a message of this step is wanted; keeps the segment's step range.
bool SegmentFeed::takes(const ReadOptions& options, int64_t step) {
  if (info.first_step < 0 || step < info.first_step) info.first_step = step;
  info.last_step = std::max(info.last_step, step);
  ++info.messages;
  for (; without_next_step_ < skipped.size(); ++without_next_step_) {
    skipped[without_next_step_].before_step = step;
  }
  last_step_passed = std::max(last_step_passed, step);
  if (gap_ > 0 && !skipped.empty()) {
    skipped.back().messages += gap_;
    gap_ = 0;
  }
  const bool wanted = step >= options.from_step && step <= options.to_step &&
                      !(options.skip_superseded && step >= superseded_from);
  if (wanted) last_step_delivered = std::max(last_step_delivered.value_or(step), step);
  return wanted;
}

void SegmentFeed::take_message(const SegmentReader::Message& message, MessageHandler& handler,
                               const ReadOptions& options, bool* stopped) {
  const auto parse = [&](auto* parsed) {
    return is_plausible_message(message.data) &&
           parsed->ParseFromArray(message.data.data(), static_cast<int>(message.data.size()));
  };
  const std::string& topic = *message.topic;
  const int64_t time = message.publish_time;
  if (topic.compare(0, kProbePrefix.size(), kProbePrefix) == 0) {
    if (!parse(&record_) || !takes(options, record_.step())) return;
    probe_.assign(topic, kProbePrefix.size(), std::string::npos);
    *stopped = !handler.on_record(probe_, record_, time);
  } else if (topic == "/optimizer") {
    if (!parse(&settings_)) return;
    // Settings hold until the next message, so those before the range are needed too.
    const bool superseded = options.skip_superseded && settings_.step() >= superseded_from;
    (void)takes(options, settings_.step());
    if (!superseded && settings_.step() <= options.to_step)
      *stopped = !handler.on_optimizer(settings_, time);
  } else if (topic == "/events") {
    if (parse(&event_) && takes(options, event_.step())) *stopped = !handler.on_event(event_, time);
  } else if (topic == "/health") {
    if (parse(&health_) && takes(options, health_.step()))
      *stopped = !handler.on_health(health_, time);
  } else if (topic == "/findings") {
    if (parse(&finding_) && takes(options, finding_.step()))
      *stopped = !handler.on_finding(finding_, time);
  } else if (topic == "/structure") {
    ++info.messages;
    if (parse(&structure_)) *stopped = !handler.on_structure(structure_, time);
  }
}

void SegmentFeed::advance(MessageHandler& handler, const ReadOptions& options, bool more_to_come,
                          uint64_t most_bytes, bool* stopped) {
  SegmentReader::Callbacks callbacks;
  callbacks.wanted = [&](int64_t first, int64_t last) {
    const bool wanted = last >= options.from_step && first <= options.to_step &&
                        !(options.skip_superseded && first >= superseded_from);
    if (!wanted) {
      if (info.first_step < 0 || first < info.first_step) info.first_step = first;
      info.last_step = std::max(info.last_step, last);
    }
    return wanted;
  };
  callbacks.on_gap = [&](uint64_t messages) { gap_ += messages; };
  callbacks.on_skipped = [&](uint64_t begin, uint64_t end, std::string why) {
    // The last record of a segment that is being written need not be whole yet.
    if (info.being_written && end == info.bytes) return;
    SkippedRegion region;
    region.segment = info.name;
    region.begin = begin;
    region.end = end;
    region.why = std::move(why);
    region.after_step = last_step_passed;
    skipped.push_back(std::move(region));
  };
  callbacks.on_message = [&](const SegmentReader::Message& message) {
    take_message(message, handler, options, stopped);
    return !*stopped;
  };
  reader_->advance(callbacks, more_to_come, most_bytes);
  info.chunks = reader_->chunks();
  info.compression = reader_->compression();
}

bool SegmentFeed::finish(MessageHandler& handler, bool stopped) {
  if (gap_ > 0 && !stopped) {
    if (skipped.empty()) {
      SkippedRegion region;
      region.segment = info.name;
      region.why = "sequence numbers have gaps";
      region.after_step = info.first_step;
      region.before_step = info.last_step;
      skipped.push_back(std::move(region));
    }
    skipped.back().messages += gap_;
    gap_ = 0;
  }
  bool go_on = !stopped;
  for (const SkippedRegion& region : skipped) go_on = handler.on_skipped(region) && go_on;
  return go_on;
}

std::optional<SkippedRegion> SegmentFeed::tail() const {
  if (reader_ == nullptr || at_end() || info.being_written || reader_->tail_why().empty())
    return std::nullopt;
  SkippedRegion region;
  region.segment = info.name;
  region.begin = reader_->position();
  region.end = reader_->size();
  region.why = reader_->tail_why();
  region.after_step = last_step_passed;
  return region;
}

SkippedRegion unreadable_segment(const std::string& path, const Status& why) {
  SkippedRegion region;
  region.segment = std::filesystem::path(path).filename().string();
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  region.end = error ? 0 : bytes;
  region.why = why.message();
  return region;
}

void relate(const std::vector<std::unique_ptr<SegmentFeed>>& segments) {
  const auto intact = std::find_if(segments.begin(), segments.end(),
                                   [](const auto& segment) { return segment->has_descriptions; });
  for (size_t i = 0; i < segments.size(); ++i) {
    SegmentFeed& segment = *segments[i];
    if (segment.has_descriptions || intact == segments.end()) continue;
    const SegmentFeed& lender =
        i > 0 && segments[i - 1]->has_descriptions ? *segments[i - 1] : **intact;
    segment.run = lender.run;
    segment.run.set_resumed(false);
    segment.model = lender.model;
    segment.registry = lender.registry;
    segment.has_descriptions = true;
  }
  // The later segments of a resumed session carry the session's description too: only a change of
  // resume_step or start time marks a new session, and superseding twice with the same step is
  // harmless.
  int64_t from = std::numeric_limits<int64_t>::max();
  for (size_t i = segments.size(); i-- > 0;) {
    SegmentFeed& segment = *segments[i];
    segment.superseded_from = from;
    const bool starts_session =
        segment.run.resumed() &&
        (i == 0 || !segments[i - 1]->run.resumed() ||
         segments[i - 1]->run.start_time_ns() != segment.run.start_time_ns());
    segment.info.resumed = starts_session;
    segment.info.resume_step = segment.run.resume_step();
    if (starts_session) from = std::min(from, segment.run.resume_step());
  }
}

}  // namespace tycho::trace
