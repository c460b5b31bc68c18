#include "tycho/trace/run_follower.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include "tests/support/trace_samples.h"
#include "tycho/trace/file_system.h"

namespace tycho::trace {
namespace {

using namespace tycho::testing;

constexpr int kLayers = 3;
constexpr uint64_t kAll = uint64_t{1} << 40;

// What was handed over, as one text that can be compared.
struct Followed : FollowHandler {
  void on_restart() override {
    log.clear();
    ++restarts;
  }
  bool on_segment(const SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model, const v1::StatisticRegistry&) override {
    log.push_back("segment " + info.name + " " + run.run_id() + " " +
                  std::to_string(model.layer_size()) + (info.resumed ? " resumed" : ""));
    return true;
  }
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time) override {
    log.push_back(probe + " " + std::to_string(time) + " " + record.SerializeAsString());
    return true;
  }
  bool on_event(const v1::Event& event, int64_t time) override {
    log.push_back("event " + std::to_string(time) + " " + event.SerializeAsString());
    return true;
  }
  bool on_structure(const v1::ModelStructure& structure, int64_t) override {
    log.push_back("structure " + structure.SerializeAsString());
    return true;
  }
  std::vector<std::string> log;
  int restarts = 0;
};

struct Fresh {
  std::vector<std::string> log;
  std::vector<std::string> losses;
};

Fresh read_fresh(const std::string& path) {
  Fresh fresh;
  auto reader = RunReader::open(path);
  if (!reader.ok()) return fresh;
  Followed handler;
  EXPECT_TRUE(reader.value()->read(handler).ok());
  fresh.log = handler.log;
  fresh.losses = losses(reader.value()->segments(), reader.value()->skipped());
  return fresh;
}

void expect_as_fresh(const RunFollower& follower, const Followed& got, const std::string& path,
                     const std::string& where) {
  const Fresh fresh = read_fresh(path);
  ASSERT_EQ(got.log.size(), fresh.log.size()) << where;
  ASSERT_EQ(got.log, fresh.log) << where;
  ASSERT_EQ(losses(follower.segments(), follower.skipped()), fresh.losses) << where;
}

RunWriterOptions small_chunks(const std::string& directory) {
  RunWriterOptions options;
  options.directory = directory;
  options.chunk_bytes = 9000;
  options.sync_interval = std::chrono::milliseconds(-1);
  return options;
}

std::unique_ptr<RunWriter> open_writer(const RunWriterOptions& options, v1::RunDescription run) {
  auto writer = RunWriter::open(options, std::move(run), sample_model(kLayers), sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

v1::RunDescription resumed_run(int64_t step, int64_t start) {
  v1::RunDescription run = sample_run("a");
  run.set_resumed(true);
  run.set_resume_step(step);
  run.set_start_time_ns(start);
  return run;
}

void append(const std::string& path, const std::string& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "ab");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(std::fwrite(bytes.data(), 1, bytes.size(), file), bytes.size());
  std::fclose(file);
}

// A sealed run of several chunks in several segments.
void write_run(const std::string& directory, int64_t steps) {
  RunWriterOptions options = small_chunks(directory);
  options.segment_bytes = 40000;
  auto writer = open_writer(options, sample_run("a"));
  for (int64_t step = 0; step < steps; step += 10) {
    write_steps(writer.get(), step, step + 10, kLayers);
    ASSERT_TRUE(writer->flush().ok());
  }
  ASSERT_TRUE(writer->close().ok());
}

TEST(RunFollower, AtEveryCutHandsOverWhatAReadOfTheSameBytesDoes) {
  ScratchDirectory scratch;
  write_run(scratch.path("whole"), 60);
  const std::string bytes = read_file(scratch.path("whole/000000.mcap"));
  const std::string directory = scratch.path("run");
  const std::string path = directory + "/000000.mcap";
  std::mt19937 random(7);
  // A byte at a time around the edges of records, in leaps elsewhere.
  for (const size_t largest : {size_t{1}, size_t{97}, size_t{5000}}) {
    std::filesystem::remove_all(directory);
    std::filesystem::create_directories(directory);
    write_file(path, "");
    RunFollower follower(directory);
    Followed got;
    const size_t begin = largest == 1 ? bytes.size() - 1500 : 0;
    if (begin > 0) append(path, bytes.substr(0, begin));
    for (size_t at = begin; at < bytes.size();) {
      const size_t size = std::min(bytes.size() - at, 1 + random() % largest);
      append(path, bytes.substr(at, size));
      at += size;
      EXPECT_FALSE(follower.poll(got, kAll));
      if (follower.state() == RunState::kUnreadable) continue;  // its head is not whole
      expect_as_fresh(follower, got, directory, "cut at byte " + std::to_string(at));
      ASSERT_FALSE(HasFatalFailure());
    }
    EXPECT_EQ(got.restarts, 0);
    EXPECT_EQ(follower.state(), RunState::kFinished) << follower.why();
    EXPECT_FALSE(follower.is_doubtful());
  }
}

TEST(RunFollower, FollowsAWriterThroughItsSegments) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  RunFollower follower(directory);
  Followed got;
  EXPECT_FALSE(follower.poll(got, kAll));
  EXPECT_EQ(follower.state(), RunState::kWaiting);
  EXPECT_NE(follower.why().find("No such file"), std::string::npos) << follower.why();
  RunWriterOptions options = small_chunks(directory);
  options.segment_bytes = 20000;
  auto writer = open_writer(options, sample_run("a"));
  for (int64_t step = 0; step < 200; step += 10) {
    write_steps(writer.get(), step, step + 10, kLayers);
    ASSERT_TRUE(writer->flush().ok());
    while (follower.poll(got, 3000)) {
    }
    EXPECT_EQ(follower.state(), RunState::kLive) << follower.why();
    expect_as_fresh(follower, got, directory, "step " + std::to_string(step));
  }
  ASSERT_TRUE(writer->close().ok());
  while (follower.poll(got, 3000)) {
  }
  EXPECT_EQ(follower.state(), RunState::kFinished);
  expect_as_fresh(follower, got, directory, "the end");
  EXPECT_GT(follower.segments().size(), 2u);
  EXPECT_EQ(got.restarts, 0);
}

TEST(RunFollower, ReadsWhileAThreadWrites) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  std::atomic<bool> done{false};
  std::thread thread([&] {
    RunWriterOptions options = small_chunks(directory);
    options.segment_bytes = 60000;
    auto writer = open_writer(options, sample_run("a"));
    for (int64_t step = 0; step < 3000; ++step) write_steps(writer.get(), step, step + 1, kLayers);
    EXPECT_TRUE(writer->close().ok());
    done = true;
  });
  RunFollower follower(directory);
  Followed got;
  while (!done || follower.state() != RunState::kFinished) {
    (void)follower.poll(got, kAll);
    if (follower.state() == RunState::kFinished) {
      // A run that says it is finished is.
      while (!done) std::this_thread::yield();
    }
  }
  thread.join();
  expect_as_fresh(follower, got, directory, "the end");
  EXPECT_EQ(got.restarts, 0);
  EXPECT_FALSE(follower.is_doubtful());
}

TEST(RunFollower, SaysThatTheWriterDiedAndWhatThatMayHaveCost) {
  ScratchDirectory scratch;
  write_run(scratch.path("run"), 20);
  const std::string path = scratch.path("run/000000.mcap");
  const std::string bytes = read_file(path);
  write_file(path, bytes.substr(0, bytes.size() * 2 / 3));
  RunFollower follower(scratch.path("run"));
  Followed got;
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kDied);
  expect_as_fresh(follower, got, scratch.path("run"), "died");
  EXPECT_FALSE(losses(follower.segments(), follower.skipped()).empty());
}

TEST(RunFollower, BeginsAgainWhereAResumedSessionGoesBack) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  auto writer = open_writer(small_chunks(directory), sample_run("a"));
  write_steps(writer.get(), 0, 50, kLayers);
  ASSERT_TRUE(writer->close().ok());
  RunFollower follower(directory);
  Followed got;
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  // On from where it ended: nothing that was handed over changes.
  writer = open_writer(small_chunks(directory), resumed_run(50, 2000));
  write_steps(writer.get(), 50, 80, kLayers);
  ASSERT_TRUE(writer->flush().ok());
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kLive);
  EXPECT_EQ(got.restarts, 0);
  expect_as_fresh(follower, got, directory, "resumed at the end");
  ASSERT_TRUE(writer->close().ok());
  // Back to step 60: what was handed over of the steps from there on does not count any more.
  writer = open_writer(small_chunks(directory), resumed_run(60, 3000));
  write_steps(writer.get(), 60, 70, kLayers);
  ASSERT_TRUE(writer->flush().ok());
  for (int i = 0; i < 3; ++i) (void)follower.poll(got, kAll);
  EXPECT_EQ(got.restarts, 1);
  expect_as_fresh(follower, got, directory, "resumed before the end");
  ASSERT_TRUE(writer->close().ok());
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  expect_as_fresh(follower, got, directory, "the end");
  EXPECT_FALSE(follower.is_doubtful());
}

TEST(RunFollower, GoesOnWithTheNewerOfTwoWriters) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  auto older = open_writer(small_chunks(directory), sample_run("a"));
  write_steps(older.get(), 0, 40, kLayers);
  ASSERT_TRUE(older->flush().ok());
  RunFollower follower(directory);
  Followed got;
  (void)follower.poll(got, kAll);
  auto newer = open_writer(small_chunks(directory), resumed_run(30, 2000));
  for (int64_t step = 40; step < 80; step += 10) {
    write_steps(older.get(), step, step + 10, kLayers);
    write_steps(newer.get(), step - 10, step, kLayers);
    ASSERT_TRUE(older->flush().ok());
    ASSERT_TRUE(newer->flush().ok());
    (void)follower.poll(got, kAll);
    EXPECT_EQ(follower.state(), RunState::kLive);
    EXPECT_TRUE(follower.two_writers());
  }
  EXPECT_EQ(got.restarts, 1);
  ASSERT_TRUE(older->close().ok());
  ASSERT_TRUE(newer->close().ok());
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  EXPECT_TRUE(follower.is_doubtful());
  follower.restart();
  (void)follower.poll(got, kAll);
  expect_as_fresh(follower, got, directory, "the end");
  EXPECT_FALSE(follower.is_doubtful());
}

TEST(RunFollower, SaysThatARunIsGoneAndTakesTheOneThatFollows) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  write_run(directory, 30);
  RunFollower follower(directory);
  Followed got;
  (void)follower.poll(got, kAll);
  const size_t had = got.log.size();
  std::filesystem::remove_all(directory);
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kGone);
  EXPECT_EQ(got.log.size(), had);
  EXPECT_FALSE(follower.why().empty());
  write_run(directory, 50);
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  EXPECT_EQ(got.restarts, 1);
  expect_as_fresh(follower, got, directory, "another run");
  // Replaced between two looks.
  std::filesystem::remove_all(directory);
  write_run(directory, 20);
  (void)follower.poll(got, kAll);
  EXPECT_EQ(got.restarts, 2);
  expect_as_fresh(follower, got, directory, "a third run");
}

TEST(RunFollower, SaysThatARunIsGoneWhicheverPartOfItGoesFirst) {
  for (const char* first : {"000000.mcap", "000001.mcap"}) {
    ScratchDirectory scratch;
    const std::string directory = scratch.path("run");
    write_run(directory, 30);
    write_file(directory + "/000001.mcap", read_file(directory + "/000000.mcap"));
    RunFollower follower(directory);
    Followed got;
    (void)follower.poll(got, kAll);
    ASSERT_EQ(follower.segments().size(), 2u);
    std::filesystem::remove(directory + "/" + first);
    // What is left of it is damaged, or is gone when it is opened.
    for (const auto& entry : std::filesystem::directory_iterator(directory))
      write_file(entry.path().string(), "");
    (void)follower.poll(got, kAll);
    std::filesystem::remove_all(directory);
    (void)follower.poll(got, kAll);
    EXPECT_EQ(follower.state(), RunState::kGone) << first;
  }
}

TEST(RunFollower, BeginsAgainWhenAWriterTakesBackWhatItWrote) {
  ScratchDirectory scratch;
  write_run(scratch.path("whole"), 60);
  const std::string bytes = read_file(scratch.path("whole/000000.mcap"));
  const std::string directory = scratch.path("run");
  std::filesystem::create_directories(directory);
  const std::string path = directory + "/000000.mcap";
  write_file(path, bytes.substr(0, bytes.size() / 2));
  RunFollower follower(directory);
  Followed got;
  (void)follower.poll(got, kAll);
  ASSERT_FALSE(got.log.empty());
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(bytes.size() / 4)), 0);
  (void)follower.poll(got, kAll);
  EXPECT_EQ(got.restarts, 1);
  expect_as_fresh(follower, got, directory, "taken back");
}

TEST(RunFollower, PassesDamageInARunThatIsWritten) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  const std::string path = directory + "/000000.mcap";
  auto writer = open_writer(small_chunks(directory), sample_run("a"));
  write_steps(writer.get(), 0, 30, kLayers);
  ASSERT_TRUE(writer->flush().ok());
  RunFollower follower(directory);
  Followed got;
  (void)follower.poll(got, kAll);
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(path));
  write_steps(writer.get(), 30, 60, kLayers);
  ASSERT_TRUE(writer->flush().ok());
  {
    std::FILE* file = std::fopen(path.c_str(), "r+b");
    ASSERT_NE(file, nullptr);
    std::fseek(file, static_cast<long>(size) + 60, SEEK_SET);
    std::fputs("damage", file);
    std::fclose(file);
  }
  write_steps(writer.get(), 60, 90, kLayers);
  ASSERT_TRUE(writer->flush().ok());
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kLive);
  EXPECT_TRUE(follower.is_doubtful());
  EXPECT_EQ(follower.skipped().size(), 1u);
  ASSERT_TRUE(writer->close().ok());
  (void)follower.poll(got, kAll);
  follower.restart();
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  expect_as_fresh(follower, got, directory, "the end");
}

TEST(RunFollower, SaysWhatIsNoTrace) {
  ScratchDirectory scratch;
  const std::string file = scratch.path("notes.txt");
  write_file(file, "not a trace");
  Followed got;
  RunFollower text(file);
  (void)text.poll(got, kAll);
  EXPECT_EQ(text.state(), RunState::kUnreadable);
  EXPECT_NE(text.why().find("not a Tycho trace"), std::string::npos) << text.why();
  std::filesystem::create_directories(scratch.path("empty"));
  RunFollower empty(scratch.path("empty"));
  (void)empty.poll(got, kAll);
  EXPECT_EQ(empty.state(), RunState::kWaiting);
  EXPECT_NE(empty.why().find("holds no segment"), std::string::npos) << empty.why();
  std::filesystem::create_directories(scratch.path("foreign"));
  write_file(scratch.path("foreign/000000.mcap"), "not a trace");
  RunFollower foreign(scratch.path("foreign"));
  (void)foreign.poll(got, kAll);
  EXPECT_EQ(foreign.state(), RunState::kUnreadable);
}

TEST(RunFollower, FollowsOneSegment) {
  ScratchDirectory scratch;
  write_run(scratch.path("run"), 30);
  const std::string path = scratch.path("run/000000.mcap");
  RunFollower follower(path);
  Followed got;
  (void)follower.poll(got, kAll);
  EXPECT_EQ(follower.state(), RunState::kFinished);
  expect_as_fresh(follower, got, path, "one segment");
}

}  // namespace
}  // namespace tycho::trace
