// A trainer that is killed at any moment loses no step that is a second old, and what it may have
// lost is stated. TYCHO_KILLS sets how many are killed; 12 unless told.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>

#include "tests/support/trace_samples.h"
#include "tycho/trace/background_writer.h"

namespace tycho::trace {
namespace {

using namespace tycho::testing;
using Clock = std::chrono::steady_clock;

constexpr int kLayers = 3;
constexpr int64_t kMostSteps = int64_t{1} << 20;

/// When each step was handed over, in nanoseconds of the steady clock: in memory that outlives the
/// killed process.
struct Diary {
  std::atomic<int64_t> steps;
  std::atomic<int64_t> closed;
  std::atomic<int64_t> time[kMostSteps];
};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

std::unique_ptr<RunWriter> open_run(const std::string& directory, uint64_t segment_bytes) {
  RunWriterOptions options;
  options.directory = directory;
  options.segment_bytes = segment_bytes;
  auto writer =
      RunWriter::open(options, sample_run("killed"), sample_model(kLayers), sample_registry());
  return writer.ok() ? std::move(writer).value() : nullptr;
}

/// A run of steps that take `step_time`, as a session writes it, until somebody kills it.
[[noreturn]] void train(const std::string& directory, std::chrono::microseconds step_time,
                        int64_t steps, uint64_t segment_bytes, Diary* diary) {
  auto run = open_run(directory, segment_bytes);
  if (!run) ::_exit(1);
  BackgroundWriter writer(std::move(run), QueuePolicy::kDrop, size_t{64} << 20);
  for (int64_t step = 0; step < steps && step < kMostSteps; ++step) {
    std::this_thread::sleep_for(step_time);
    if (!writer.push({sample_record(step, kLayers), "scalars", 1000 + step})) ::_exit(1);
    diary->time[step] = now();
    diary->steps = step + 1;
  }
  if (!writer.close().ok()) ::_exit(1);
  diary->closed = 1;
  while (true) ::pause();
}

TEST(Kill, LosesNoStepThatIsASecondOldAndSaysWhatItMayHaveLost) {
  const char* wanted = std::getenv("TYCHO_KILLS");
  const int kills = wanted != nullptr ? std::max(std::atoi(wanted), 1) : 12;
  const uint32_t seed = std::random_device()();
  std::mt19937 random(seed);
  ScratchDirectory scratch;
  auto* diary = static_cast<Diary*>(
      ::mmap(nullptr, sizeof(Diary), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(diary, MAP_FAILED);
  int closed = 0;
  int64_t lost = 0;
  for (int kill = 0; kill < kills; ++kill) {
    SCOPED_TRACE(::testing::Message() << "kill " << kill << " of seed " << seed);
    const std::string directory = scratch.path("killed-" + std::to_string(kill));
    const std::chrono::microseconds step_time(int64_t{200}
                                              << std::uniform_int_distribution<int>(0, 8)(random));
    // A quarter of the runs come to their end before they are killed, or are about to.
    const auto life =
        std::chrono::milliseconds(std::uniform_int_distribution<int>(0, 2500)(random));
    const int64_t steps = kill % 4 == 0 ? life / step_time / 4 : kMostSteps;
    const uint64_t segment_bytes = kill % 3 == 0 ? 30000 : uint64_t{256} << 20;
    diary->steps = 0;
    diary->closed = 0;
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) train(directory, step_time, steps, segment_bytes, diary);
    std::this_thread::sleep_for(life);
    const int64_t killed_at = now();
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const int64_t trained = diary->steps;
    auto reader = RunReader::open(directory);
    if (!reader.ok()) {  // Killed before there was a segment: that is said by every command.
      EXPECT_EQ(trained, 0) << reader.status().message();
      continue;
    }
    Collector got;
    ASSERT_TRUE(reader.value()->read(got).ok());
    int64_t old = 0;
    while (old < trained && killed_at - diary->time[old] > 1'000'000'000) ++old;
    const auto kept = static_cast<int64_t>(got.records.size());
    EXPECT_GE(kept, old) << trained << " steps of " << step_time.count() << " us";
    for (int64_t step = 0; step < kept; ++step) EXPECT_EQ(got.records[step].second.step(), step);
    const auto stated = losses(reader.value()->segments(), reader.value()->skipped());
    EXPECT_TRUE(kept == trained || !stated.empty()) << trained - kept << " steps are lost";
    if (diary->closed != 0) {
      EXPECT_TRUE(stated.empty()) << stated.front();
      EXPECT_EQ(kept, trained);
      ++closed;
    } else if (steps == kMostSteps) {
      EXPECT_FALSE(stated.empty());
    }
    lost += trained - kept;
    std::filesystem::remove_all(directory);
  }
  RecordProperty("kills", kills);
  RecordProperty("steps_lost", std::to_string(lost));
  std::printf("%d kills, %d after the trace was closed, %lld steps lost in all\n", kills, closed,
              static_cast<long long>(lost));
  ::munmap(diary, sizeof(Diary));
}

SegmentInfo last_segment(const std::string& directory) {
  auto reader = RunReader::open(directory);
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  Collector got;
  EXPECT_TRUE(reader.value()->read(got).ok());
  EXPECT_TRUE(got.skipped.empty());
  return reader.value()->segments().back();
}

TEST(Kill, AWriterThatIsAliveIsToldFromOneThatDied) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  int begun[2];
  ASSERT_EQ(::pipe(begun), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto writer = open_run(directory, uint64_t{256} << 20);
    write_steps(writer.get(), 0, 5, kLayers);
    (void)writer->flush();
    // A data loader's process, say: it lives on when its parent is killed.
    if (::fork() == 0) {
      ::close(begun[0]);
      if (::write(begun[1], "y", 1) != 1) ::_exit(1);  // it runs: what it inherited is closed
      ::sleep(20);
      ::_exit(0);
    }
    if (::write(begun[1], "x", 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  for (int process = 0; process < 2; ++process) {
    char byte = 0;
    ASSERT_EQ(::read(begun[0], &byte, 1), 1);
  }
  const SegmentInfo alive = last_segment(directory);
  EXPECT_TRUE(alive.being_written);
  EXPECT_FALSE(alive.sealed);
  EXPECT_EQ(alive.at_risk_seconds, 0);
  EXPECT_TRUE(losses({alive}, {}).empty());
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const SegmentInfo dead = last_segment(directory);
  EXPECT_FALSE(dead.being_written);
  EXPECT_FALSE(dead.sealed);
  EXPECT_EQ(dead.at_risk_seconds, 1);
  ASSERT_EQ(losses({dead}, {}).size(), 1u);
  EXPECT_NE(losses({dead}, {}).front().find("the writer died; up to 1 s of steps after step 4"),
            std::string::npos)
      << losses({dead}, {}).front();
  ::close(begun[0]);
  ::close(begun[1]);
}

TEST(Kill, WhatIsRecoveredFromADeadRunStillSaysWhatMayBeMissing) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto writer = open_run(directory, uint64_t{256} << 20);
    write_steps(writer.get(), 0, 5, kLayers);
    (void)writer->flush();
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  const auto outcome = recover(directory, scratch.path("recovered"));
  ASSERT_TRUE(outcome.ok()) << outcome.status().message();
  EXPECT_EQ(outcome.value().losses.size(), 1u);
  auto reader = RunReader::open(scratch.path("recovered"));
  ASSERT_TRUE(reader.ok());
  Collector got;
  ASSERT_TRUE(reader.value()->read(got).ok());
  EXPECT_EQ(got.records.size(), 5u);
  ASSERT_FALSE(got.events.empty());
  EXPECT_EQ(got.events.back().code(), "recovered_with_loss");
  EXPECT_NE(got.events.back().message().find("the writer died"), std::string::npos);
}

}  // namespace
}  // namespace tycho::trace
