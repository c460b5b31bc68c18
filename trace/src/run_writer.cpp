#include "tycho/trace/run_writer.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "segment_writer.h"
#include "tycho/trace/run_reader.h"

namespace tycho::trace {
namespace {

using Clock = std::chrono::steady_clock;

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
        model_attachment(model),
        {"statistic_registry", "application/protobuf; message=tycho.v1.StatisticRegistry",
         registry.SerializeAsString()}};
  }

  /// Opens the next segment; the present one, if any, stays.
  Result<std::unique_ptr<SegmentWriter>> next_segment() {
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
    segment.run_metadata["at_risk_seconds"] =
        fmt::format("{}", std::chrono::duration<double>(options_.at_risk).count());
    auto writer = SegmentWriter::create(files(), path, std::move(segment));
    if (!writer.ok()) return writer.status();
    ++next_segment_;
    ++segments_opened_;
    last_sync_ = Clock::now();
    // That the name survives the death of the machine is not worth a segment.
    if (Status status = files()->sync_directory(options_.directory); !status.ok()) note(status);
    return writer;
  }

  Status open_segment() {
    auto opened = next_segment();
    if (!opened.ok()) return opened.status();
    segment_ = std::move(opened).value();
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
  void write(const v1::Finding& finding, int64_t time_ns) override {
    store("/findings", finding, true, finding.step(), time_ns);
  }
  void write(const v1::ModelStructure& structure, int64_t time_ns) override {
    structure_ = structure;
    have_structure_ = true;
    store("/structure", structure, false, 0, time_ns);
  }
  void write(const v1::ModelDescription& model, int64_t) override {
    const Attachment described = model_attachment(model);
    for (Attachment& attachment : attachments_) {
      if (attachment.name == described.name) attachment = described;
    }
    have_structure_ = false;
    if (!segment_ || closed_) return;
    rotation_failed_at_ = {};
    if (rotate()) return;
    // Ids would be read as those of the model before: the next message opens a segment, or is lost.
    const uint64_t open = segment_->open_messages();
    if (!segment_->seal().ok()) {
      lost_ += open;
      (void)segment_->rewind();
    }
    bytes_closed_ += segment_->bytes();
    segment_.reset();
    failing_ = true;
    failed_at_ = Clock::now();
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
        Clock::now() - segment_->chunk_opened() >= options_.at_risk / 2) {
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
      note(status);
      lost_ += open;
      (void)segment_->rewind();
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

  static Attachment model_attachment(const v1::ModelDescription& model) {
    return {"model_description", "application/protobuf; message=tycho.v1.ModelDescription",
            model.SerializeAsString()};
  }

  template <typename Message>
  void store(const std::string& topic, const Message& message, bool has_step, int64_t step,
             int64_t time_ns) {
    ++written_;
    if (closed_) {
      ++lost_;
      return;
    }
    if (failing_ && Clock::now() - failed_at_ < options_.retry_interval) {
      ++lost_;
      if (segment_) segment_->pass_over(topic, message.GetTypeName());
      return;
    }
    failing_ = false;
    if (!segment_) {
      if (Status status = open_segment(); !status.ok()) {
        fail(status, 1);
        return;
      }
    }
    message.SerializeToString(&buffer_);
    const uint64_t open = segment_->open_messages();
    if (Status status =
            segment_->write(topic, message.GetTypeName(), buffer_, has_step, step, time_ns);
        !status.ok()) {
      fail(status, open + 1);
      return;
    }
    if (Clock::now() - segment_->chunk_opened() >= options_.at_risk / 2 &&
        !segment_->chunk_is_empty()) {
      if (!flush().ok()) return;
    }
    sync_if_due();
    if (segment_->bytes() >= options_.segment_bytes) (void)rotate();
  }

  void sync_if_due() {
    if (!segment_ || options_.sync_interval <= std::chrono::milliseconds::zero()) return;
    if (Clock::now() - last_sync_ < options_.sync_interval) return;
    last_sync_ = Clock::now();
    if (Status status = segment_->sync(); !status.ok()) note(status);
  }

  // The next segment is opened before this one is sealed: there is no moment at which a killed run
  // looks as if it had been closed. False: it goes on in this one.
  bool rotate() {
    if (Clock::now() - rotation_failed_at_ < options_.retry_interval) return false;
    auto next = next_segment();
    if (!next.ok()) {
      note(next.status());
      rotation_failed_at_ = Clock::now();
      return false;
    }
    const uint64_t open = segment_->open_messages();
    if (Status status = segment_->seal(); !status.ok()) {
      note(status);
      lost_ += open;
    }
    bytes_closed_ += segment_->bytes();
    segment_ = std::move(next).value();
    return true;
  }

  /// A failure that lost no message.
  void note(const Status& status) {
    ++failures_;
    last_failure_ = status;
  }

  void fail(const Status& status, uint64_t messages) {
    note(status);
    lost_ += messages;
    failing_ = true;
    failed_at_ = Clock::now();
    if (!segment_ || segment_->rewind()) return;
    bytes_closed_ += segment_->bytes();
    segment_.reset();
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
  bool failing_ = false;
  Clock::time_point failed_at_;
  Clock::time_point rotation_failed_at_;
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
  if (!run.resumed() && holds_run(options.directory)) {
    return Status(Status::Code::kInvalidArgument,
                  fmt::format("{} already holds a run; choose another directory, or resume it",
                              options.directory));
  }
  auto segments = list_segments(options.directory);
  if (!segments.ok()) return segments.status();
  uint64_t next = 0;
  for (const std::string& name : segments.value()) {
    const std::string path = (std::filesystem::path(options.directory) / name).string();
    // What a writer left that died between creating a segment and writing its first byte would be
    // said to be missing for ever.
    if (auto file = ReadableFile::open(path); file.ok() && file.value()->size() == 0 &&
                                              !file.value()->locked() && files->remove(path).ok()) {
      continue;
    }
    next = std::strtoull(name.c_str(), nullptr, 10) + 1;
  }
  // The run keeps its identity. A directory too damaged to say which run it holds is continued
  // all the same.
  if (run.resumed()) {
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

bool holds_run(const std::string& directory) {
  const auto segments = list_segments(directory);
  if (!segments.ok()) return false;
  for (const std::string& name : segments.value()) {
    std::error_code error;
    const auto size = std::filesystem::file_size(std::filesystem::path(directory) / name, error);
    // Whatever is in it is not to be mixed with a run. The head is written at once, so less than a
    // magic is what a writer left that died, or had no space.
    if (error || size >= mcap::kMagic.size()) return true;
  }
  return false;
}

}  // namespace tycho::trace
