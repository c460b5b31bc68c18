#include "tycho/trace/run_writer.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "segment_writer.h"
#include "tycho/trace/run_reader.h"

namespace tycho::trace {
namespace {

using Clock = std::chrono::steady_clock;

// After a failure a new segment is tried this often: space may come back.
constexpr std::chrono::seconds kRetryInterval{5};

class Writer : public RunWriter {
 public:
  Writer(RunWriterOptions options, v1::RunDescription run, uint64_t next_segment)
      : options_(std::move(options)), run_(std::move(run)), next_segment_(next_segment) {}
  ~Writer() override {
    if (!closed_) (void)Writer::close();
  }

  void set_descriptions(const v1::ModelDescription& model, const v1::StatisticRegistry& registry) {
    attachments_ = {
        {"run_description", "application/protobuf; message=tycho.v1.RunDescription",
         run_.SerializeAsString()},
        {"model_description", "application/protobuf; message=tycho.v1.ModelDescription",
         model.SerializeAsString()},
        {"statistic_registry", "application/protobuf; message=tycho.v1.StatisticRegistry",
         registry.SerializeAsString()}};
  }

  Status open_segment() {
    const std::string path =
        (std::filesystem::path(options_.directory) / fmt::format("{:06}.mcap", next_segment_))
            .string();
    SegmentOptions segment;
    segment.chunk_bytes = options_.chunk_bytes;
    segment.compression_level = options_.compression_level;
    segment.attachments = attachments_;
    if (have_structure_) {
      segment.attachments.push_back({"model_structure",
                                     "application/protobuf; message=tycho.v1.ModelStructure",
                                     structure_.SerializeAsString()});
    }
    segment.run_metadata = {
        {"run_id", run_.run_id()},
        {"run_name", run_.run_name()},
        {"resumed", run_.resumed() && segments_opened_ == 0 ? "true" : "false"}};
    for (const auto& [name, version] : run_.versions())
      segment.run_metadata["version_" + name] = version;
    std::string command;
    for (const std::string& argument : run_.command_line()) {
      command += (command.empty() ? "" : " ") + argument;
    }
    segment.run_metadata["command_line"] = command;
    ++next_segment_;
    auto writer = SegmentWriter::create(files(), path, std::move(segment));
    if (!writer.ok()) return writer.status();
    segment_ = std::move(writer).value();
    ++segments_opened_;
    last_sync_ = Clock::now();
    if (Status status = files()->sync_directory(options_.directory); !status.ok()) return status;
    return Status();
  }

  void write(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    store("/probe/" + probe, record, true, record.step(), time_ns);
  }
  void write(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    store("/optimizer", settings, true, settings.step(), time_ns);
  }
  void write(const v1::Event& event, int64_t time_ns) override {
    store("/events", event, true, event.step(), time_ns);
  }
  void write(const v1::Health& health, int64_t time_ns) override {
    store("/health", health, true, health.step(), time_ns);
  }
  void write(const v1::ModelStructure& structure, int64_t time_ns) override {
    structure_ = structure;
    have_structure_ = true;
    store("/structure", structure, false, 0, time_ns);
  }

  Status flush() override {
    if (!segment_) return last_failure_;
    const uint64_t open = segment_->open_messages();
    if (Status status = segment_->close_chunk(); !status.ok()) {
      fail(status, open);
      return status;
    }
    return Status();
  }

  void tick() override {
    if (!segment_) return;
    if (!segment_->chunk_is_empty() &&
        Clock::now() - segment_->chunk_opened() >= options_.chunk_interval) {
      (void)flush();
    }
    sync_if_due();
  }

  Status close() override {
    if (closed_) return last_failure_;
    closed_ = true;
    if (!segment_) return last_failure_;
    const uint64_t open = segment_->open_messages();
    Status status = segment_->seal();
    bytes_closed_ += segment_->bytes();
    if (status.ok()) status = files()->sync_directory(options_.directory);
    if (!status.ok()) {
      ++failures_;
      last_failure_ = status;
      lost_ += open;
    }
    segment_.reset();
    return status;
  }

  uint64_t messages_written() const override { return written_ - lost_; }
  uint64_t bytes_written() const override {
    return bytes_closed_ + (segment_ ? segment_->bytes() : 0);
  }
  uint64_t messages_lost() const override { return lost_; }
  uint64_t write_failures() const override { return failures_; }
  const Status& last_failure() const override { return last_failure_; }
  const v1::RunDescription& run() const override { return run_; }

 private:
  FileSystem* files() const {
    return options_.file_system ? options_.file_system : FileSystem::system();
  }

  template <typename Message>
  void store(const std::string& topic, const Message& message, bool has_step, int64_t step,
             int64_t time_ns) {
    ++written_;
    if (closed_) {
      ++lost_;
      return;
    }
    if (!segment_ && !reopen()) {
      ++lost_;
      return;
    }
    message.SerializeToString(&buffer_);
    const uint64_t open = segment_->open_messages();
    if (Status status =
            segment_->write(topic, message.GetTypeName(), buffer_, has_step, step, time_ns);
        !status.ok()) {
      fail(status, open + 1);
      return;
    }
    if (Clock::now() - segment_->chunk_opened() >= options_.chunk_interval &&
        !segment_->chunk_is_empty()) {
      if (!flush().ok()) return;
    }
    sync_if_due();
    if (segment_ && segment_->bytes() >= options_.segment_bytes) rotate();
  }

  void sync_if_due() {
    if (!segment_ || options_.sync_interval <= std::chrono::milliseconds::zero()) return;
    if (Clock::now() - last_sync_ < options_.sync_interval) return;
    last_sync_ = Clock::now();
    if (Status status = segment_->sync(); !status.ok()) fail(status, segment_->open_messages());
  }

  void rotate() {
    const uint64_t open = segment_->open_messages();
    if (Status status = segment_->seal(); !status.ok()) {
      fail(status, open);
      return;
    }
    bytes_closed_ += segment_->bytes();
    segment_.reset();
    if (Status status = open_segment(); !status.ok()) fail(status, 0);
  }

  void fail(const Status& status, uint64_t messages) {
    ++failures_;
    lost_ += messages;
    last_failure_ = status;
    if (segment_) bytes_closed_ += segment_->bytes();
    segment_.reset();
    failed_at_ = Clock::now();
  }

  bool reopen() {
    if (Clock::now() - failed_at_ < kRetryInterval) return false;
    if (Status status = open_segment(); !status.ok()) {
      fail(status, 0);
      return false;
    }
    return true;
  }

  RunWriterOptions options_;
  v1::RunDescription run_;
  std::vector<Attachment> attachments_;
  v1::ModelStructure structure_;
  bool have_structure_ = false;
  uint64_t next_segment_ = 0;
  uint64_t segments_opened_ = 0;
  std::unique_ptr<SegmentWriter> segment_;
  std::string buffer_;
  Clock::time_point last_sync_;
  Clock::time_point failed_at_;
  bool closed_ = false;
  uint64_t written_ = 0;
  uint64_t lost_ = 0;
  uint64_t failures_ = 0;
  uint64_t bytes_closed_ = 0;
  Status last_failure_;
};

}  // namespace

RunWriter::~RunWriter() = default;

Result<std::unique_ptr<RunWriter>> RunWriter::open(const RunWriterOptions& options,
                                                   v1::RunDescription run,
                                                   v1::ModelDescription model,
                                                   v1::StatisticRegistry registry) {
  FileSystem* files = options.file_system ? options.file_system : FileSystem::system();
  if (Status status = files->create_directories(options.directory); !status.ok()) return status;
  auto segments = list_segments(options.directory);
  if (!segments.ok()) return segments.status();
  uint64_t next = 0;
  if (!segments.value().empty()) {
    if (!run.resumed()) {
      return Status(
          Status::Code::kInvalidArgument,
          fmt::format(
              "{} already holds a run ({} segments); choose another directory, or resume it",
              options.directory, segments.value().size()));
    }
    next = std::strtoull(segments.value().back().c_str(), nullptr, 10) + 1;
    // The run keeps its identity. A directory too damaged to say which run it holds is continued
    // all the same.
    if (auto reader = RunReader::open(options.directory);
        reader.ok() && !reader.value()->run().run_id().empty()) {
      run.set_run_id(reader.value()->run().run_id());
    }
  }
  auto writer = std::make_unique<Writer>(options, std::move(run), next);
  writer->set_descriptions(model, registry);
  if (Status status = writer->open_segment(); !status.ok()) return status;
  return std::unique_ptr<RunWriter>(std::move(writer));
}

}  // namespace tycho::trace
