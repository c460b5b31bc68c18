#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
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
    return stored(time_ns);
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override {
    writer_->write(settings, time_ns);
    return stored(time_ns);
  }
  bool on_event(const v1::Event& event, int64_t time_ns) override {
    writer_->write(event, time_ns);
    return stored(time_ns);
  }
  bool on_health(const v1::Health& health, int64_t time_ns) override {
    writer_->write(health, time_ns);
    return stored(time_ns);
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override {
    writer_->write(structure, time_ns);
    return stored(time_ns);
  }
  bool on_finding(const v1::Finding& finding, int64_t time_ns) override {
    writer_->write(finding, time_ns);
    return stored(time_ns);
  }

  /// Says in the new run what is missing in it: it will be sealed, and look as if nothing were.
  void tell(const std::vector<std::string>& losses, int64_t last_step) {
    for (const std::string& loss : losses) {
      if (!writer_) return;
      v1::Event event;
      event.set_step(last_step);
      event.set_kind(v1::Event::NOTICE);
      event.set_code("recovered_with_loss");
      event.set_message("recovered; " + loss);
      event.set_scope(v1::SCOPE_RUN);
      event.set_count(1);
      writer_->write(event, time_ns_);
    }
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
  bool stored(int64_t time_ns) {
    ++messages_;
    time_ns_ = time_ns;
    if (writer_->messages_lost() > 0) status_ = writer_->last_failure();
    return status_.ok();
  }

  RunWriterOptions options_;
  std::unique_ptr<RunWriter> writer_;
  Status status_;
  uint64_t messages_ = 0;
  int64_t time_ns_ = 0;
};

Result<RecoverOutcome> copy(RunReader* reader, const std::string& output) {
  Copier copier(output);
  ReadOptions options;
  options.skip_superseded = false;  // Both recordings are kept.
  if (Status status = reader->read(copier, options); !status.ok()) return status;
  RecoverOutcome outcome;
  outcome.losses = losses(reader->segments(), reader->skipped());
  int64_t last_step = 0;
  for (const SegmentInfo& segment : reader->segments())
    last_step = std::max(last_step, segment.last_step);
  copier.tell(outcome.losses, last_step);
  copier.finish();
  if (!copier.status().ok()) return copier.status();
  outcome.messages = copier.messages();
  for (const SkippedRegion& region : reader->skipped())
    outcome.bytes_lost += region.end - region.begin;
  return outcome;
}

}  // namespace

Result<RecoverOutcome> recover(const std::string& path, const std::string& output) {
  std::error_code error;
  namespace fs = std::filesystem;
  const auto refuse = [&](const std::string& why) {
    return Status(Status::Code::kInvalidArgument, fmt::format("{} {}", output, why));
  };
  fs::path target = fs::path(output).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();  // "out/"
  if (target.empty() || fs::exists(fs::symlink_status(target, error)))
    return refuse("exists already");
  auto reader = RunReader::open(path);
  if (!reader.ok()) return reader.status();
  const fs::path run =
      fs::is_directory(path, error) ? fs::path(path) : fs::path(path).parent_path();
  const fs::path parent = target.parent_path().empty() ? fs::path(".") : target.parent_path();
  if (fs::equivalent(run.empty() ? fs::path(".") : run, parent, error) &&
      target.extension() == ".mcap") {
    return refuse("would be read as a segment of the run");
  }
  // Made beside it: half of a run, sealed, would look like a whole one.
  const fs::path unfinished =
      parent / fmt::format(".tycho-{}-{}", ::getpid(), target.filename().string().substr(0, 200));
  fs::remove_all(unfinished, error);
  auto outcome = copy(reader.value().get(), unfinished.string());
  if (outcome.ok()) {
    fs::rename(unfinished, target, error);
    if (!error) return outcome;
    outcome = Status(Status::Code::kIoError,
                     fmt::format("cannot create {}: {}", output, error.message()));
  }
  std::error_code ignored;
  fs::remove_all(unfinished, ignored);
  return outcome;
}

}  // namespace tycho::trace
