#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::trace {

/// An append-only file, owned by one thread. While open it is locked (an advisory
/// open-file-description lock), which tells a reader that its writer is alive. In a forked child
/// the file is closed.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  /// Hands all of `bytes` to the operating system: they survive the death of the process. After a
  /// failure, an unknown part of them has been written.
  virtual Status append(std::string_view bytes) = 0;
  /// Everything appended so far survives the death of the machine.
  virtual Status sync() = 0;
  virtual Status close() = 0;
  /// Removes data appended after `size`, when a write failed.
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
  /// The operating system's file system. Never null, never destroyed.
  static FileSystem* system();
};

/// Distinguishes a file from another one that has taken its name.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  bool operator==(const FileIdentity& other) const {
    return device == other.device && inode == other.inode;
  }
};

/// A file read at arbitrary offsets. Thread-safe, except for refresh().
class ReadableFile {
 public:
  /// Fails at once, without waiting, for anything that is not a regular file.
  static Result<std::unique_ptr<ReadableFile>> open(const std::string& path);
  ~ReadableFile();
  ReadableFile(const ReadableFile&) = delete;
  ReadableFile& operator=(const ReadableFile&) = delete;

  /// Size when it was opened or refreshed: data appended later is not seen.
  uint64_t size() const { return size_; }
  /// Whether a WritableFile of a living process had it open just before its size was read: a file
  /// that is not locked will not grow any more.
  bool locked() const { return locked_; }
  FileIdentity identity() const { return identity_; }
  /// Reads lock and size again. Fails with kNotFound if its name is gone or names another file.
  Status refresh();
  /// Reads `size` bytes at `offset` into `out` (resized); fails if the file ends before.
  Status read(uint64_t offset, uint64_t size, std::string* out) const;

 private:
  ReadableFile(int descriptor, FileIdentity identity, uint64_t size, bool locked, std::string path);
  int descriptor_;
  FileIdentity identity_;
  uint64_t size_;
  bool locked_;
  std::string path_;
};

/// Size and identity of the file with this name, without opening it.
Result<std::pair<FileIdentity, uint64_t>> look_at(const std::string& path);

/// Names of all entries of a directory, in no particular order.
Result<std::vector<std::string>> list_directory(const std::string& directory);

/// Names of the segments in a run directory, in order; empty if there are none.
Result<std::vector<std::string>> list_segments(const std::string& directory);

}  // namespace tycho::trace
