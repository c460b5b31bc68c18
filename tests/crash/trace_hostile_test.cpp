// Files that nobody wrote by accident, and what else may lie in a run directory.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zstd.h>

#include <filesystem>
#include <string>

#include "mcap.h"
#include "tests/support/trace_samples.h"
#include "tycho/trace/file_system.h"

namespace tycho::trace {
namespace {

using namespace tycho::testing;
using mcap::Encoder;
using mcap::Opcode;

std::string head() {
  std::string bytes(mcap::kMagic);
  std::string content;
  Encoder encoder(&content);
  encoder.text(mcap::kProfile);
  encoder.text("");
  mcap::append_record(Opcode::kHeader, content, &bytes);
  return bytes;
}

void append_chunk(const std::string& records, std::string* file) {
  std::string stored(ZSTD_compressBound(records.size()), '\0');
  stored.resize(ZSTD_compress(stored.data(), stored.size(), records.data(), records.size(), 1));
  std::string content;
  Encoder encoder(&content);
  encoder.number(uint64_t{0});
  encoder.number(uint64_t{0});
  encoder.number(static_cast<uint64_t>(records.size()));
  encoder.number(mcap::crc32(records));
  encoder.text("zstd");
  encoder.number(static_cast<uint64_t>(stored.size()));
  encoder.bytes(stored);
  mcap::append_record(Opcode::kChunk, content, file);
}

std::string channel(const std::string& topic) {
  std::string records;
  std::string content;
  Encoder encoder(&content);
  encoder.number(uint16_t{0});
  encoder.number(uint16_t{0});
  encoder.text(topic);
  mcap::append_record(Opcode::kChannel, content, &records);
  return records;
}

std::string message(uint32_t sequence, const std::string& data) {
  std::string records;
  std::string content;
  Encoder encoder(&content);
  encoder.number(uint16_t{0});
  encoder.number(sequence);
  encoder.number(uint64_t{0});
  encoder.number(uint64_t{0});
  encoder.bytes(data);
  mcap::append_record(Opcode::kMessage, content, &records);
  return records;
}

struct Outcome {
  Collector got;
  std::vector<SegmentInfo> segments;
};

Outcome read(const std::string& path) {
  Outcome outcome;
  auto reader = RunReader::open(path);
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  if (!reader.ok()) return outcome;
  EXPECT_TRUE(reader.value()->read(outcome.got).ok());
  outcome.segments = reader.value()->segments();
  return outcome;
}

Outcome read_bytes(const ScratchDirectory& scratch, const std::string& bytes) {
  write_file(scratch.path("hostile.mcap"), bytes);
  return read(scratch.path("hostile.mcap"));
}

// Each Seal vouches for a chunk before the first of them, which is none. A reader that goes back
// to look for it meets the first Seal again, and then the second.
TEST(HostileTrace, SealsThatPointBackAreReadOnce) {
  ScratchDirectory scratch;
  for (const int seals : {1, 2, 3, 50}) {
    for (const uint64_t offset : {uint64_t{0}, uint64_t{8}, uint64_t{9}, uint64_t{30}}) {
      std::string bytes = head();
      for (int i = 0; i < seals; ++i) {
        mcap::Seal seal;
        seal.chunk_offset = offset;
        seal.chunk_length = 20;
        mcap::append_record(Opcode::kSeal, mcap::encode_seal(seal), &bytes);
      }
      const Outcome outcome = read_bytes(scratch, bytes);
      EXPECT_LE(outcome.got.skipped.size(), static_cast<size_t>(seals));
      EXPECT_TRUE(outcome.got.records.empty());
    }
  }
}

TEST(HostileTrace, AChunkThatClaimsMoreThanItMayHoldIsDamage) {
  ScratchDirectory scratch;
  std::string bytes = head();
  append_chunk(std::string(size_t{32} << 20, '\0'), &bytes);
  ASSERT_LT(bytes.size(), 10000u);
  const Outcome outcome = read_bytes(scratch, bytes);
  ASSERT_EQ(outcome.got.skipped.size(), 1u);
  EXPECT_NE(outcome.got.skipped[0].why.find("stored bytes may hold"), std::string::npos);
  EXPECT_EQ(outcome.segments.at(0).chunks, 0u);
}

TEST(HostileTrace, ManyChunksMayNotHoldMoreThanTheSegmentAllows) {
  ScratchDirectory scratch;
  std::string bytes = head();
  std::string chunk;
  append_chunk(std::string(mcap::kFreeChunkBytes, '\0'), &chunk);
  for (int i = 0; i < 100; ++i) bytes += chunk;
  const Outcome outcome = read_bytes(scratch, bytes);
  EXPECT_LE(outcome.segments.at(0).chunks * mcap::kFreeChunkBytes,
            mcap::kFreeSegmentBytes + mcap::kMaxSegmentRatio * bytes.size());
  EXPECT_FALSE(outcome.got.skipped.empty());
}

TEST(HostileTrace, TheNumberOfMessagesIsBoundedByTheSizeOfTheFile) {
  ScratchDirectory scratch;
  std::string records = channel("/events");
  v1::Event event;
  event.set_step(1);
  const std::string one = message(0, event.SerializeAsString());
  while (records.size() < mcap::kFreeChunkBytes - one.size()) records += one;
  std::string bytes = head();
  append_chunk(records, &bytes);
  append_chunk(records, &bytes);
  const Outcome outcome = read_bytes(scratch, bytes);
  EXPECT_EQ(outcome.got.events.size(), mcap::kFreeMessages + bytes.size() / 16);
  EXPECT_FALSE(outcome.got.skipped.empty());
}

// An empty column is two bytes in the file, and a hundred and more in memory.
TEST(HostileTrace, AMessageOfNothingButEmptyFieldsIsNotRead) {
  ScratchDirectory scratch;
  std::string data;
  while (data.size() < (size_t{3} << 20)) data += std::string("\x12\x00", 2);
  v1::Record sound = sample_record(7, 3);
  std::string bytes = head();
  append_chunk(channel("/probe/scalars") + message(0, data) + message(1, sound.SerializeAsString()),
               &bytes);
  const Outcome outcome = read_bytes(scratch, bytes);
  ASSERT_EQ(outcome.got.records.size(), 1u);
  EXPECT_EQ(outcome.got.records[0].second.step(), 7);
}

// Numbers that are all the same, as those of a run that has diverged, shrink a thousandfold.
TEST(HostileTrace, WhatAWriterWroteIsNeverTakenForAForgery) {
  ScratchDirectory scratch;
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.chunk_bytes = size_t{8} << 20;
  auto writer = RunWriter::open(options, sample_run("a"), sample_model(1), sample_registry());
  ASSERT_TRUE(writer.ok());
  for (int64_t step = 0; step < 15; ++step) {
    v1::Record record;
    record.set_step(step);
    auto* column = record.add_column();
    for (int i = 0; i < 100000; ++i) column->add_value(0);
    writer.value()->write("constant", record, step);
  }
  ASSERT_TRUE(writer.value()->close().ok());
  const Outcome outcome = read(options.directory);
  EXPECT_EQ(outcome.got.records.size(), 15u);
  EXPECT_TRUE(outcome.got.skipped.empty());
}

std::string make_run(const ScratchDirectory& scratch) {
  RunWriterOptions options;
  options.directory = scratch.path("run");
  auto writer = RunWriter::open(options, sample_run("a"), sample_model(3), sample_registry());
  EXPECT_TRUE(writer.ok());
  write_steps(writer.value().get(), 0, 10, 3);
  EXPECT_TRUE(writer.value()->close().ok());
  return options.directory;
}

// A reader that opens a pipe waits for its writer.
TEST(RunDirectory, WhatIsNoFileIsSkippedAndSaid) {
  ScratchDirectory scratch;
  const std::string run = make_run(scratch);
  ASSERT_EQ(::mkfifo((run + "/000001.mcap").c_str(), 0600), 0);
  ASSERT_TRUE(std::filesystem::create_directory(run + "/000002.mcap"));
  std::filesystem::create_symlink("/dev/zero", run + "/000003.mcap");
  std::filesystem::create_symlink("nowhere", run + "/000004.mcap");
  std::filesystem::create_symlink("000005.mcap", run + "/000005.mcap");
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = run + "/000006.mcap";
  ASSERT_LT(name.size(), sizeof address.sun_path);
  name.copy(address.sun_path, name.size());
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  write_file(run + "/99999999999999999999.mcap", "a number of more than 64 bits");
  const Outcome outcome = read(run);
  EXPECT_EQ(outcome.got.records.size(), 10u);
  EXPECT_EQ(outcome.got.skipped.size(), 6u);
  EXPECT_EQ(losses(outcome.segments, outcome.got.skipped).size(), 6u);
  ::close(listener);
}

TEST(RunDirectory, AnEmptyFirstSegmentHoldsNoRun) {
  ScratchDirectory scratch;
  const std::string run = scratch.path("run");
  std::filesystem::create_directories(run);
  write_file(run + "/000000.mcap", "");
  EXPECT_FALSE(holds_run(run));
  make_run(scratch);
  EXPECT_TRUE(holds_run(run));
  const Outcome outcome = read(run);
  EXPECT_EQ(outcome.got.records.size(), 10u);
  EXPECT_TRUE(losses(outcome.segments, outcome.got.skipped).empty());
}

TEST(RunDirectory, WhatEverIsNotEmptyIsNotMixedWithARun) {
  ScratchDirectory scratch;
  const std::string bytes = read_file(make_run(scratch) + "/000000.mcap");
  std::string newer = bytes;
  newer[newer.find("tycho/1") + 6] = '2';
  for (const std::string& other : {newer, std::string("somebody's own file"),
                                   bytes.substr(bytes.size() / 2), bytes.substr(0, 3000)}) {
    const std::string directory = scratch.path("other");
    std::filesystem::remove_all(directory);
    std::filesystem::create_directories(directory);
    write_file(directory + "/000000.mcap", other);
    EXPECT_TRUE(holds_run(directory)) << other.size();
    RunWriterOptions options;
    options.directory = directory;
    EXPECT_FALSE(
        RunWriter::open(options, sample_run("b"), sample_model(3), sample_registry()).ok());
    EXPECT_EQ(read_file(directory + "/000000.mcap"), other);
  }
}

// A disk with so many bytes left for all files opened through it.
class SmallDisk : public FileSystem {
 public:
  explicit SmallDisk(uint64_t space) : space(space) {}
  Status create_directories(const std::string& path) override {
    return system()->create_directories(path);
  }
  Status sync_directory(const std::string& path) override { return system()->sync_directory(path); }
  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override {
    auto file = system()->create(path);
    if (!file.ok()) return file.status();
    return std::unique_ptr<WritableFile>(new File(std::move(file).value(), this));
  }
  uint64_t space;

 private:
  class File : public WritableFile {
   public:
    File(std::unique_ptr<WritableFile> file, SmallDisk* disk)
        : file_(std::move(file)), disk_(disk) {}
    Status append(std::string_view bytes) override {
      const std::string_view part = bytes.substr(0, disk_->space);
      disk_->space -= part.size();
      size_ += part.size();
      if (Status status = file_->append(part); !status.ok()) return status;
      return part.size() == bytes.size() ? Status() : Status(Status::Code::kNoSpace, "full");
    }
    Status truncate(uint64_t size) override {
      disk_->space += size_ - size;
      size_ = size;
      return file_->truncate(size);
    }
    Status sync() override { return file_->sync(); }
    Status close() override { return file_->close(); }

   private:
    std::unique_ptr<WritableFile> file_;
    SmallDisk* disk_;
    uint64_t size_ = 0;
  };
};

TEST(RunDirectory, AFullDiskLeavesOneSegmentThatGoesOnWhenSpaceComesBack) {
  ScratchDirectory scratch;
  SmallDisk disk(60000);
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.file_system = &disk;
  options.retry_interval = std::chrono::milliseconds(0);
  auto writer = RunWriter::open(options, sample_run("a"), sample_model(3), sample_registry());
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  int64_t step = 0;
  const auto train = [&](int steps) {
    for (int i = 0; i < steps; ++i, ++step) {
      write_steps(writer.value().get(), step, step + 1, 3);
      (void)writer.value()->flush();
    }
  };
  train(100);
  const uint64_t lost = writer.value()->messages_lost();
  EXPECT_GT(lost, 0u);
  disk.space = 1 << 20;
  train(20);
  ASSERT_TRUE(writer.value()->close().ok());
  EXPECT_EQ(writer.value()->messages_lost(), lost);
  EXPECT_EQ(list_segments(options.directory).value().size(), 1u);
  const Outcome outcome = read(options.directory);
  EXPECT_TRUE(outcome.segments.at(0).sealed);
  EXPECT_EQ(outcome.got.records.size() + outcome.got.events.size() + lost,
            writer.value()->messages_written() + lost);
  EXPECT_EQ(outcome.got.records.back().second.step(), 119);
  ASSERT_EQ(outcome.got.skipped.size(), 1u);
  EXPECT_EQ(outcome.got.skipped[0].messages, lost);
}

TEST(RunDirectory, ADiskWithoutSpaceForAHeadIsLeftAsItWas) {
  ScratchDirectory scratch;
  SmallDisk disk(100);
  RunWriterOptions options;
  options.directory = scratch.path("run");
  options.file_system = &disk;
  EXPECT_FALSE(RunWriter::open(options, sample_run("a"), sample_model(3), sample_registry()).ok());
  EXPECT_TRUE(std::filesystem::is_empty(options.directory));
}

}  // namespace
}  // namespace tycho::trace
