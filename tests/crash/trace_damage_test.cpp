#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>
#include <set>
#include <thread>

#include "tests/support/trace_samples.h"
#include "tycho/trace/file_system.h"

namespace tycho::trace {
namespace {

using namespace tycho::testing;

constexpr int kLayers = 3;
constexpr int64_t kSteps = 60;

// A sealed trace of several chunks in one segment.
std::string make_trace(const ScratchDirectory& scratch) {
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.chunk_bytes = 9000;
  auto writer = RunWriter::open(options, sample_run("a"), sample_model(kLayers), sample_registry());
  EXPECT_TRUE(writer.ok());
  for (int64_t step = 0; step < kSteps; step += 10) {
    write_steps(writer.value().get(), step, step + 10, kLayers);
    EXPECT_TRUE(writer.value()->flush().ok());
  }
  EXPECT_TRUE(writer.value()->close().ok());
  return read_file(scratch.path("run/000000.mcap"));
}

// Whatever the damage: what is read is a subset, in order, each value right.
void expect_sound(const Collector& got) {
  int64_t previous = -1;
  for (const auto& [probe, record] : got.records) {
    EXPECT_GT(record.step(), previous);
    previous = record.step();
    EXPECT_EQ(record.SerializeAsString(),
              sample_record(record.step(), kLayers).SerializeAsString());
  }
}

// End offsets of the chunks' records, in order, from the undamaged file.
std::vector<std::pair<uint64_t, uint64_t>> chunk_extents(const std::string& bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> extents;
  for (uint64_t at = 8; at + 9 <= bytes.size();) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at + 1, 8);
    if (static_cast<uint8_t>(bytes[at]) == 0x06) extents.emplace_back(at, at + 9 + length);
    if (static_cast<uint8_t>(bytes[at]) == 0x02) break;
    at += 9 + length;
  }
  return extents;
}

TEST(TraceDamage, CutAtEveryByteKeepsEveryWholeChunk) {
  ScratchDirectory scratch;
  const std::string bytes = make_trace(scratch);
  const auto chunks = chunk_extents(bytes);
  ASSERT_GE(chunks.size(), 6u);
  const std::string path = scratch.path("cut.mcap");
  write_file(path, bytes);
  for (size_t size = bytes.size(); size-- > 0;) {
    ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
    auto reader = RunReader::open(path);
    if (size < 8) {
      EXPECT_FALSE(reader.ok()) << size;
      continue;
    }
    ASSERT_TRUE(reader.ok()) << size << ": " << reader.status().message();
    Collector got;
    ASSERT_TRUE(reader.value()->read(got).ok());
    size_t whole = 0;
    while (whole < chunks.size() && chunks[whole].second <= size) ++whole;
    ASSERT_EQ(got.records.size(), whole * 10) << "cut at byte " << size;
    expect_sound(got);
    // Everything behind the last whole record is reported, to the byte.
    if (!got.skipped.empty()) {
      EXPECT_EQ(got.skipped.back().end, size);
    }
    if (whole > 0 && !got.skipped.empty()) {
      EXPECT_EQ(got.skipped.back().after_step, static_cast<int64_t>(whole) * 10 - 1);
    }
  }
}

/// Type and length of every record outside chunks: the bytes that no checksum protects.
std::vector<size_t> framing_bytes(const std::string& bytes) {
  std::vector<size_t> framing;
  for (size_t at = 8; at + 9 < bytes.size();) {
    for (size_t i = 0; i < 9; ++i) framing.push_back(at + i);
    uint64_t length;
    std::memcpy(&length, bytes.data() + at + 1, sizeof length);
    at += 9 + length;
  }
  return framing;
}

TEST(TraceDamage, AFlippedBitCostsAtMostItsOwnChunk) {
  ScratchDirectory scratch;
  const std::string bytes = make_trace(scratch);
  const auto chunks = chunk_extents(bytes);
  std::vector<size_t> bits;
  for (const size_t byte : framing_bytes(bytes)) {
    for (size_t bit = 0; bit < 8; ++bit) bits.push_back(8 * byte + bit);
  }
  std::mt19937 random(20240501);
  std::uniform_int_distribution<size_t> position(0, bytes.size() * 8 - 1);
  for (int trial = 0; trial < 6000; ++trial) bits.push_back(position(random));
  const std::string path = scratch.path("flipped.mcap");
  for (const size_t bit : bits) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    write_file(path, damaged);
    auto reader = RunReader::open(path);
    if (!reader.ok()) {
      // Only the profile string in the head may turn a trace into something that is refused.
      EXPECT_LT(bit / 8, 64u);
      continue;
    }
    Collector got;
    ASSERT_TRUE(reader.value()->read(got).ok());
    expect_sound(got);
    size_t hit = 0;
    for (const auto& [begin, end] : chunks) hit += bit / 8 >= begin && bit / 8 < end ? 1 : 0;
    EXPECT_GE(got.records.size(), (chunks.size() - hit) * 10) << "bit " << bit;
    if (got.records.size() < static_cast<size_t>(kSteps)) {
      EXPECT_FALSE(got.skipped.empty()) << "bit " << bit;
    }
  }
}

TEST(TraceDamage, ALostChunkIsReportedInBytesStepsAndMessages) {
  ScratchDirectory scratch;
  std::string bytes = make_trace(scratch);
  const auto chunks = chunk_extents(bytes);
  bytes[(chunks[2].first + chunks[2].second) / 2] ^= 0x40;
  write_file(scratch.path("damaged.mcap"), bytes);
  auto reader = RunReader::open(scratch.path("damaged.mcap"));
  ASSERT_TRUE(reader.ok());
  Collector got;
  ASSERT_TRUE(reader.value()->read(got).ok());
  ASSERT_EQ(got.records.size(), static_cast<size_t>(kSteps) - 10);
  ASSERT_EQ(got.skipped.size(), 1u);
  EXPECT_LE(got.skipped[0].begin, chunks[2].first);
  EXPECT_GE(got.skipped[0].end, chunks[2].second);
  EXPECT_EQ(got.skipped[0].after_step, 19);
  EXPECT_EQ(got.skipped[0].before_step, 30);
  EXPECT_GE(got.skipped[0].messages, 10u);
}

TEST(TraceDamage, ADestroyedHeadLosesNoMessageAndNoName) {
  ScratchDirectory scratch;
  std::string bytes = make_trace(scratch);
  const auto chunks = chunk_extents(bytes);
  for (uint64_t i = 0; i < chunks[0].first; ++i) bytes[i] = '\x55';
  write_file(scratch.path("headless.mcap"), bytes);
  auto reader = RunReader::open(scratch.path("headless.mcap"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  Collector got;
  ASSERT_TRUE(reader.value()->read(got).ok());
  EXPECT_EQ(got.records.size(), static_cast<size_t>(kSteps));
  EXPECT_EQ(got.model.layer_size(), kLayers);
  EXPECT_EQ(got.registry.statistic_size(), 3);
  ASSERT_FALSE(got.skipped.empty());
}

TEST(TraceDamage, RecoverMakesACleanTraceOfWhatIsLeft) {
  ScratchDirectory scratch;
  const std::string bytes = make_trace(scratch);
  const auto chunks = chunk_extents(bytes);
  write_file(scratch.path("cut.mcap"), bytes.substr(0, chunks[4].second - 1));
  const auto outcome = recover(scratch.path("cut.mcap"), scratch.path("recovered"));
  ASSERT_TRUE(outcome.ok()) << outcome.status().message();
  EXPECT_GT(outcome.value().bytes_lost, 0u);
  auto reader = RunReader::open(scratch.path("recovered"));
  ASSERT_TRUE(reader.ok());
  Collector got;
  ASSERT_TRUE(reader.value()->read(got).ok());
  EXPECT_EQ(got.records.size(), 40u);
  EXPECT_TRUE(got.skipped.empty());
  EXPECT_TRUE(reader.value()->segments().at(0).sealed);
  EXPECT_FALSE(recover(scratch.path("cut.mcap"), scratch.path("recovered")).ok());
}

// A disk that is full after a number of bytes, for the files opened through it.
class FullDisk : public FileSystem {
 public:
  explicit FullDisk(uint64_t capacity) : left_(capacity) {}
  Status create_directories(const std::string& path) override {
    return system()->create_directories(path);
  }
  Status sync_directory(const std::string& path) override { return system()->sync_directory(path); }
  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override {
    auto file = system()->create(path);
    if (!file.ok()) return file.status();
    return std::unique_ptr<WritableFile>(new File(std::move(file).value(), &left_));
  }

 private:
  class File : public WritableFile {
   public:
    File(std::unique_ptr<WritableFile> file, uint64_t* left)
        : file_(std::move(file)), left_(left) {}
    Status append(std::string_view bytes) override {
      const bool fits = bytes.size() <= *left_;
      const std::string_view part = bytes.substr(0, fits ? bytes.size() : *left_);
      *left_ -= part.size();
      if (Status status = file_->append(part); !status.ok()) return status;
      return fits ? Status() : Status(Status::Code::kNoSpace, "the disk is full");
    }
    Status sync() override { return file_->sync(); }
    Status close() override { return file_->close(); }

   private:
    std::unique_ptr<WritableFile> file_;
    uint64_t* left_;
  };
  uint64_t left_;
};

TEST(TraceDamage, AFullDiskIsCountedAndKeepsWhatWasWritten) {
  ScratchDirectory scratch;
  const std::string whole = make_trace(scratch);
  for (uint64_t capacity = 0; capacity < whole.size(); capacity += 997) {
    FullDisk disk(capacity);
    RunWriterOptions options;
    options.directory = scratch.path("full-" + std::to_string(capacity));
    options.file_system = &disk;
    auto writer =
        RunWriter::open(options, sample_run("a"), sample_model(kLayers), sample_registry());
    if (!writer.ok()) {
      EXPECT_EQ(writer.status().code(), Status::Code::kNoSpace);
      continue;
    }
    for (int64_t step = 0; step < kSteps; step += 10) {
      write_steps(writer.value().get(), step, step + 10, kLayers);
      (void)writer.value()->flush();
    }
    (void)writer.value()->close();
    EXPECT_GT(writer.value()->write_failures(), 0u);
    auto reader = RunReader::open(options.directory);
    ASSERT_TRUE(reader.ok()) << capacity;
    Collector got;
    ASSERT_TRUE(reader.value()->read(got).ok());
    expect_sound(got);
    // A chunk may have reached the disk whole although what follows it did not.
    EXPECT_GE(got.records.size() + got.events.size(), writer.value()->messages_written())
        << capacity;
  }
}

TEST(TraceDamage, SigkillLosesAtMostTheOpenChunk) {
  ScratchDirectory scratch;
  std::mt19937 random(7);
  for (int trial = 0; trial < 20; ++trial) {
    const std::string directory = scratch.path("killed-" + std::to_string(trial));
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      RunWriterOptions options;
      options.directory = directory;
      options.chunk_bytes = 3000;
      auto writer =
          RunWriter::open(options, sample_run("a"), sample_model(kLayers), sample_registry());
      if (!writer.ok()) ::_exit(1);
      for (int64_t step = 0;; step += 10) {
        write_steps(writer.value().get(), step, step + 10, kLayers);
        if (!writer.value()->flush().ok()) ::_exit(1);
        const int64_t safe = step + 10;
        if (::write(pipe_ends[1], &safe, sizeof safe) != sizeof safe) ::_exit(1);
      }
    }
    ::close(pipe_ends[1]);
    int64_t safe = 0;
    const int rounds = std::uniform_int_distribution<int>(1, 40)(random);
    for (int i = 0; i < rounds; ++i)
      ASSERT_EQ(::read(pipe_ends[0], &safe, sizeof safe), static_cast<ssize_t>(sizeof safe));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(pipe_ends[0]);
    auto reader = RunReader::open(directory);
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    Collector got;
    ASSERT_TRUE(reader.value()->read(got).ok());
    EXPECT_GE(got.records.size(), static_cast<size_t>(safe));
    expect_sound(got);
  }
}

TEST(TraceDamage, SurvivesTheRemovalOfItsDirectory) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("gone");
  options.segment_bytes = 20000;
  auto writer = RunWriter::open(options, sample_run("a"), sample_model(kLayers), sample_registry());
  ASSERT_TRUE(writer.ok());
  write_steps(writer.value().get(), 0, 10, kLayers);
  std::filesystem::remove_all(options.directory);
  for (int64_t step = 10; step < 2000; step += 10) {
    write_steps(writer.value().get(), step, step + 10, kLayers);
    (void)writer.value()->flush();
  }
  (void)writer.value()->close();
  EXPECT_GT(writer.value()->write_failures(), 0u);
  EXPECT_GT(writer.value()->messages_lost(), 0u);
}

}  // namespace
}  // namespace tycho::trace
