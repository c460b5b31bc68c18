#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::trace {

/// A file that grows at its end. One thread owns it.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  /// Hands all of `bytes` to the operating system: they survive the death of the process. After a
  /// failure an unknown part of them was written.
  virtual Status append(std::string_view bytes) = 0;
  /// Everything appended so far survives the death of the machine.
  virtual Status sync() = 0;
  virtual Status close() = 0;
};

/// The part of a file system that a writer needs. Tests derive from it to inject faults.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual Status create_directories(const std::string& path) = 0;
  /// Creates a file that must not exist.
  virtual Result<std::unique_ptr<WritableFile>> create(const std::string& path) = 0;
  /// Makes the names in a directory survive the death of the machine.
  virtual Status sync_directory(const std::string& path) = 0;
  /// The operating system's. Never null, never destroyed.
  static FileSystem* system();
};

/// A file read at arbitrary offsets. Thread-safe.
class ReadableFile {
 public:
  static Result<std::unique_ptr<ReadableFile>> open(const std::string& path);
  ~ReadableFile();
  ReadableFile(const ReadableFile&) = delete;
  ReadableFile& operator=(const ReadableFile&) = delete;

  /// Size when it was opened: what is appended later is not seen.
  uint64_t size() const { return size_; }
  /// Reads `size` bytes at `offset` into `out` (resized); fails if the file ends before.
  Status read(uint64_t offset, uint64_t size, std::string* out) const;

 private:
  ReadableFile(int descriptor, uint64_t size, std::string path);
  int descriptor_;
  uint64_t size_;
  std::string path_;
};

/// Names of the segments in a run directory, in order; empty if there are none.
Result<std::vector<std::string>> list_segments(const std::string& directory);

}  // namespace tycho::trace
