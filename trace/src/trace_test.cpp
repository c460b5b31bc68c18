#include <gtest/gtest.h>

#include <memory>
#include <new>
#include <thread>

#include "tests/support/trace_samples.h"
#include "tycho/trace/background_writer.h"
#include "tycho/trace/file_system.h"

namespace tycho::trace {
namespace {

using namespace tycho::testing;

std::unique_ptr<RunWriter> open_writer(const RunWriterOptions& options,
                                       const v1::RunDescription& run, int layers) {
  auto writer = RunWriter::open(options, run, sample_model(layers), sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

Collector collect(const std::string& path, const ReadOptions& options = {}) {
  Collector collector;
  auto reader = RunReader::open(path);
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  if (!reader.ok()) return collector;
  EXPECT_TRUE(reader.value()->read(collector, options).ok());
  return collector;
}

TEST(Trace, ReturnsEveryMessageInOrder) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.chunk_bytes = 2000;
  auto writer = open_writer(options, sample_run("a"), 5);
  write_steps(writer.get(), 0, 200, 5);
  ASSERT_TRUE(writer->close().ok());
  EXPECT_EQ(writer->messages_lost(), 0u);
  const Collector got = collect(options.directory);
  ASSERT_EQ(got.records.size(), 200u);
  EXPECT_TRUE(got.skipped.empty());
  EXPECT_EQ(got.model.layer_size(), 5);
  EXPECT_EQ(got.registry.statistic_size(), 3);
  EXPECT_EQ(got.runs.at(0).run_id(), "a");
  for (int64_t step = 0; step < 200; ++step) {
    EXPECT_EQ(got.records[step].first, "scalars");
    EXPECT_EQ(got.records[step].second.SerializeAsString(),
              sample_record(step, 5).SerializeAsString());
  }
}

TEST(Trace, RotatesSegmentsAndReadsThemAsOneRun) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.chunk_bytes = 1000;
  options.segment_bytes = 20000;
  auto writer = open_writer(options, sample_run("a"), 3);
  write_steps(writer.get(), 0, 300, 3);
  ASSERT_TRUE(writer->close().ok());
  EXPECT_GT(list_segments(options.directory).value().size(), 2u);
  const Collector got = collect(options.directory);
  ASSERT_EQ(got.records.size(), 300u);
  EXPECT_TRUE(got.skipped.empty());
}

TEST(Trace, ResumedStepsReplaceEarlierOnesButBothAreKept) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  auto writer = open_writer(options, sample_run("a"), 2);
  write_steps(writer.get(), 0, 50, 2);
  ASSERT_TRUE(writer->close().ok());
  v1::RunDescription resumed = sample_run("b");
  resumed.set_start_time_ns(2000);
  resumed.set_resumed(true);
  resumed.set_resume_step(30);
  writer = open_writer(options, resumed, 2);
  EXPECT_EQ(writer->run().run_id(), "a");
  write_steps(writer.get(), 30, 40, 2);
  ASSERT_TRUE(writer->close().ok());

  const Collector later = collect(options.directory);
  ASSERT_EQ(later.records.size(), 40u);
  for (int64_t step = 0; step < 40; ++step) EXPECT_EQ(later.records[step].second.step(), step);
  ReadOptions all;
  all.skip_superseded = false;
  EXPECT_EQ(collect(options.directory, all).records.size(), 60u);
}

TEST(Trace, AModelThatChangesOpensASegmentOfItsOwn) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  auto writer = open_writer(options, sample_run("a"), 3);
  writer->write(v1::ModelStructure(), 1);
  write_steps(writer.get(), 0, 10, 3);
  writer->write(sample_model(5), 1);
  write_steps(writer.get(), 10, 20, 5);
  writer->write(sample_model(2), 1);
  ASSERT_TRUE(writer->close().ok());
  EXPECT_EQ(writer->messages_lost(), 0u);
  auto reader = RunReader::open(options.directory);
  ASSERT_TRUE(reader.ok());
  struct Models : MessageHandler {
    bool on_segment(const SegmentInfo&, const v1::RunDescription&,
                    const v1::ModelDescription& model, const v1::StatisticRegistry&) override {
      layers.push_back(model.layer_size());
      return true;
    }
    bool on_structure(const v1::ModelStructure&, int64_t) override {
      ++structures;
      return true;
    }
    bool on_record(const std::string&, const v1::Record& record, int64_t) override {
      first_steps.resize(layers.size(), record.step());
      return true;
    }
    std::vector<int> layers;
    std::vector<int64_t> first_steps;
    int structures = 0;
  } models;
  ASSERT_TRUE(reader.value()->read(models).ok());
  EXPECT_EQ(models.layers, (std::vector<int>{3, 5, 2}));
  EXPECT_EQ(models.first_steps, (std::vector<int64_t>{0, 10}));
  EXPECT_EQ(models.structures, 1);
  EXPECT_TRUE(reader.value()->skipped().empty());
  for (const SegmentInfo& segment : reader.value()->segments()) EXPECT_TRUE(segment.sealed);
}

TEST(Trace, RefusesADirectoryThatHoldsARun) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  ASSERT_TRUE(open_writer(options, sample_run("a"), 1)->close().ok());
  const auto again = RunWriter::open(options, sample_run("b"), sample_model(1), sample_registry());
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.status().code(), Status::Code::kInvalidArgument);
  EXPECT_NE(again.status().message().find(options.directory), std::string::npos);
}

TEST(Trace, ReadsARangeOfSteps) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.chunk_bytes = 500;
  auto writer = open_writer(options, sample_run("a"), 4);
  write_steps(writer.get(), 0, 100, 4);
  ASSERT_TRUE(writer->close().ok());
  ReadOptions range;
  range.from_step = 20;
  range.to_step = 29;
  const Collector got = collect(options.directory, range);
  ASSERT_EQ(got.records.size(), 10u);
  EXPECT_EQ(got.records.front().second.step(), 20);
  EXPECT_EQ(got.records.back().second.step(), 29);
  EXPECT_TRUE(got.skipped.empty());
}

TEST(Trace, SaysWhatIsWrongWithFilesThatAreNoTrace) {
  ScratchDirectory scratch;
  EXPECT_EQ(RunReader::open(scratch.path("none")).status().code(), Status::Code::kNotFound);
  write_file(scratch.path("empty.mcap"), "");
  const auto empty = RunReader::open(scratch.path("empty.mcap"));
  EXPECT_EQ(empty.status().code(), Status::Code::kNotATrace);
  EXPECT_NE(empty.status().message().find("empty"), std::string::npos);
  write_file(scratch.path("text.mcap"), std::string(5000, 'x'));
  EXPECT_EQ(RunReader::open(scratch.path("text.mcap")).status().code(), Status::Code::kNotATrace);
  std::filesystem::create_directories(scratch.path("directory"));
  EXPECT_EQ(RunReader::open(scratch.path("directory")).status().code(), Status::Code::kNotATrace);
}

TEST(Trace, RefusesANewerProfile) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  ASSERT_TRUE(open_writer(options, sample_run("a"), 1)->close().ok());
  std::string bytes = read_file(scratch.path("run/000000.mcap"));
  const size_t profile = bytes.find("tycho/1");
  ASSERT_NE(profile, std::string::npos);
  bytes[profile + 6] = '2';
  write_file(scratch.path("newer.mcap"), bytes);
  const auto newer = RunReader::open(scratch.path("newer.mcap"));
  EXPECT_EQ(newer.status().code(), Status::Code::kNotATrace);
  EXPECT_NE(newer.status().message().find("newer"), std::string::npos);
}

TEST(Trace, FlushedMessagesAreReadableBeforeTheTraceIsClosed) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  auto writer = open_writer(options, sample_run("a"), 2);
  write_steps(writer.get(), 0, 10, 2);
  ASSERT_TRUE(writer->flush().ok());
  EXPECT_EQ(collect(options.directory).records.size(), 10u);
}

TEST(BackgroundWriter, StoresWhatSeveralThreadsPush) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  BackgroundWriter writer(open_writer(options, sample_run("a"), 2), QueuePolicy::kBlock, 4096);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&writer] {
      for (int64_t step = 0; step < 250; ++step) {
        QueuedMessage message;
        message.message = sample_record(step, 2);
        message.probe = "scalars";
        EXPECT_TRUE(writer.push(std::move(message)));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(writer.close().ok());
  ASSERT_TRUE(writer.close().ok());
  EXPECT_EQ(writer.counters().messages_dropped, 0u);
  EXPECT_EQ(collect(options.directory).records.size(), 1000u);
}

TEST(BackgroundWriter, CountsWhatItDrops) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  BackgroundWriter writer(open_writer(options, sample_run("a"), 2), QueuePolicy::kDrop, 1);
  uint64_t taken = 0;
  for (int64_t step = 0; step < 2000; ++step) {
    QueuedMessage message;
    message.message = sample_record(step, 2);
    message.probe = "scalars";
    taken += writer.push(std::move(message)) ? 1 : 0;
  }
  ASSERT_TRUE(writer.close().ok());
  EXPECT_EQ(writer.counters().messages_written, taken);
  EXPECT_EQ(writer.counters().messages_written + writer.counters().messages_dropped, 2000u);
  EXPECT_EQ(collect(options.directory).records.size(), taken);
}

// Memory that is out, say. On the writer's own thread nobody could catch it.
class FailingWriter : public RunWriter {
 public:
  void write(const std::string&, const v1::Record&, int64_t) override { throw std::bad_alloc(); }
  void write(const v1::OptimizerSettings&, int64_t) override { throw std::bad_alloc(); }
  void write(const v1::Event&, int64_t) override { throw std::bad_alloc(); }
  void write(const v1::Health&, int64_t) override { throw std::bad_alloc(); }
  void write(const v1::ModelStructure&, int64_t) override { throw 1; }
  void write(const v1::Finding&, int64_t) override { throw 1; }
  void write(const v1::ModelDescription&, int64_t) override { throw std::bad_alloc(); }
  Status flush() override { throw std::bad_alloc(); }
  void tick() override { throw std::bad_alloc(); }
  Status close() override { throw std::bad_alloc(); }
  uint64_t messages_written() const override { return 0; }
  uint64_t bytes_written() const override { return 0; }
  uint64_t messages_lost() const override { return 0; }
  uint64_t write_failures() const override { return 0; }
  const Status& last_failure() const override { return none_; }
  const v1::RunDescription& run() const override { return run_; }

 private:
  Status none_;
  v1::RunDescription run_;
};

// A record whose ids are those of a model that was never written would be another layer's.
class ForgetfulWriter : public FailingWriter {
 public:
  void write(const v1::ModelDescription& model, int64_t) override {
    if (++attempts == 2) layers = model.layer_size();
    if (attempts < 2) throw std::bad_alloc();
  }
  void write(const std::string&, const v1::Record&, int64_t) override { seen.push_back(layers); }
  int attempts = 0;
  int layers = 0;
  std::vector<int> seen;
};

TEST(BackgroundWriter, WritesNothingBetweenAModelThatFailsAndItsNextAttempt) {
  auto owned = std::make_unique<ForgetfulWriter>();
  ForgetfulWriter* seen = owned.get();
  BackgroundWriter writer(std::move(owned), QueuePolicy::kDrop, 1);
  EXPECT_TRUE(writer.push({sample_record(0, 2), "scalars", 0}));
  EXPECT_TRUE(writer.push({sample_model(3), "", 0})) << "it may not be dropped, full or not";
  (void)writer.flush();
  EXPECT_TRUE(writer.push({sample_record(1, 3), "scalars", 0}));
  (void)writer.close();
  EXPECT_EQ(seen->attempts, 2);
  EXPECT_EQ(seen->seen, (std::vector<int>{0, 3}));
}

TEST(BackgroundWriter, AListenerHearsEveryMessageInOrderAndTheEndOfStepsIsNotWritten) {
  const ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  std::vector<std::string> heard;
  {
    BackgroundWriter writer(open_writer(options, sample_run("a"), 2), QueuePolicy::kBlock, 1 << 20);
    EXPECT_TRUE(writer.push({sample_record(0, 2), "scalars", 0}));
    (void)writer.flush();
    writer.set_listener([&](QueuedMessage message) {
      if (const auto* record = std::get_if<v1::Record>(&message.message))
        heard.push_back(message.probe + " " + std::to_string(record->step()));
      if (const auto* end = std::get_if<StepEnd>(&message.message))
        heard.push_back("end " + std::to_string(end->step));
      if (const auto* finding = std::get_if<v1::Finding>(&message.message))
        heard.push_back(finding->law());
    });
    v1::Finding finding;
    finding.set_step(1);
    finding.set_law("a_law");
    EXPECT_TRUE(writer.push({sample_record(1, 2), "scalars", 0}));
    EXPECT_TRUE(writer.push({StepEnd{1}, "", 0}));
    EXPECT_TRUE(writer.push({finding, "", 0}));
    ASSERT_TRUE(writer.close().ok());
    EXPECT_EQ(writer.counters().messages_written, 3U);
    EXPECT_EQ(writer.counters().messages_dropped, 0U);
  }
  EXPECT_EQ(heard, (std::vector<std::string>{"scalars 1", "end 1", "a_law"}));
  const auto contents = collect(options.directory);
  EXPECT_EQ(contents.records.size(), 2U);
  ASSERT_EQ(contents.findings.size(), 1U);
  EXPECT_EQ(contents.findings[0].law(), "a_law");
}

TEST(BackgroundWriter, ContainsWhatItsWriterThrows) {
  BackgroundWriter writer(std::make_unique<FailingWriter>(), QueuePolicy::kBlock, 1 << 20);
  for (int64_t step = 0; step < 10; ++step) {
    EXPECT_TRUE(writer.push({sample_record(step, 2), "scalars", 0}));
  }
  EXPECT_TRUE(writer.push({v1::ModelStructure(), "", 0}));
  EXPECT_FALSE(writer.flush().ok());
  EXPECT_FALSE(writer.close().ok());
  const auto counters = writer.counters();
  EXPECT_EQ(counters.messages_dropped, 11u);
  EXPECT_GE(counters.write_failures, 13u);
  EXPECT_NE(counters.last_failure.find("the writer failed"), std::string::npos);
}

}  // namespace
}  // namespace tycho::trace
