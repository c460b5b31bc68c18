#include <fmt/format.h>

#include <filesystem>

#include "tycho/trace/run_reader.h"
#include "tycho/trace/run_writer.h"

namespace tycho::trace {
namespace {

// Copies messages as they come. A session of the damaged run becomes a session of the new one.
class Copier : public MessageHandler {
 public:
  explicit Copier(std::string output) { options_.directory = std::move(output); }

  bool on_segment(const SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    if (writer_ && !info.resumed) return true;  // The writer starts new segments by size.
    if (!finish()) return false;
    v1::RunDescription description = run;
    description.set_resumed(info.resumed);
    auto writer = RunWriter::open(options_, std::move(description), model, registry);
    if (!writer.ok()) {
      status_ = writer.status();
      return false;
    }
    writer_ = std::move(writer).value();
    return true;
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override {
    writer_->write(probe, record, time_ns);
    return stored();
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    writer_->write(settings, time_ns);
    return stored();
  }
  bool on_event(const v1::Event& event, int64_t time_ns) override {
    writer_->write(event, time_ns);
    return stored();
  }
  bool on_health(const v1::Health& health, int64_t time_ns) override {
    writer_->write(health, time_ns);
    return stored();
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override {
    writer_->write(structure, time_ns);
    return stored();
  }

  bool finish() {
    if (!writer_) return true;
    if (status_.ok()) status_ = writer_->close();
    writer_.reset();
    return status_.ok();
  }
  const Status& status() const { return status_; }
  uint64_t messages() const { return messages_; }

 private:
  bool stored() {
    ++messages_;
    if (writer_->messages_lost() > 0) status_ = writer_->last_failure();
    return status_.ok();
  }

  RunWriterOptions options_;
  std::unique_ptr<RunWriter> writer_;
  Status status_;
  uint64_t messages_ = 0;
};

}  // namespace

Result<RecoverOutcome> recover(const std::string& path, const std::string& output) {
  std::error_code error;
  if (std::filesystem::exists(output, error)) {
    return Status(Status::Code::kInvalidArgument, fmt::format("{} exists already", output));
  }
  auto reader = RunReader::open(path);
  if (!reader.ok()) return reader.status();
  Copier copier(output);
  ReadOptions options;
  options.skip_superseded = false;  // Both recordings are kept.
  if (Status status = reader.value()->read(copier, options); !status.ok()) return status;
  copier.finish();
  if (!copier.status().ok()) return copier.status();
  RecoverOutcome outcome;
  outcome.messages = copier.messages();
  outcome.skipped = reader.value()->skipped();
  for (const SkippedRegion& region : outcome.skipped)
    outcome.bytes_lost += region.end - region.begin;
  return outcome;
}

}  // namespace tycho::trace
