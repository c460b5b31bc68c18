#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::trace {

/// A file that grows at its end. One thread owns it. While it is open it is locked (an advisory
/// open-file-description lock), which tells a reader that its writer is alive. A forked child has
/// no part in it: there the file is closed.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  /// Hands all of `bytes` to the operating system: they survive the death of the process. After a
  /// failure an unknown part of them was written.
  virtual Status append(std::string_view bytes) = 0;
  /// Everything appended so far survives the death of the machine.
  virtual Status sync() = 0;
  virtual Status close() = 0;
  /// Takes back what was appended behind `size`, where a write failed.
  virtual Status truncate(uint64_t size);
  /// Whether a reader can tell by a lock that the file is being written. Not every file system has
  /// locks.
  virtual bool locked() const { return false; }
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
  /// Removes a file that this program created.
  virtual Status remove(const std::string& path);
  /// The operating system's. Never null, never destroyed.
  static FileSystem* system();
};

/// A file read at arbitrary offsets. Thread-safe.
class ReadableFile {
 public:
  /// Fails at once, without waiting, for whatever is no regular file.
  static Result<std::unique_ptr<ReadableFile>> open(const std::string& path);
  ~ReadableFile();
  ReadableFile(const ReadableFile&) = delete;
  ReadableFile& operator=(const ReadableFile&) = delete;

  /// Size when it was opened: what is appended later is not seen.
  uint64_t size() const { return size_; }
  /// Whether a WritableFile of a living process had it open, just before its size was taken: a file
  /// that is not locked is as long as it will ever be.
  bool locked() const { return locked_; }
  /// Reads `size` bytes at `offset` into `out` (resized); fails if the file ends before.
  Status read(uint64_t offset, uint64_t size, std::string* out) const;

 private:
  ReadableFile(int descriptor, uint64_t size, bool locked, std::string path);
  int descriptor_;
  uint64_t size_;
  bool locked_;
  std::string path_;
};

/// Names of all entries of a directory, in no order.
Result<std::vector<std::string>> list_directory(const std::string& directory);

/// Names of the segments in a run directory, in order; empty if there are none.
Result<std::vector<std::string>> list_segments(const std::string& directory);

}  // namespace tycho::trace
