#include "tycho/trace/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

namespace tycho::trace {
namespace {

Status from_errno(const std::string& what, const std::string& path, int error) {
  Status::Code code = Status::Code::kIoError;
  if (error == ENOENT || error == ENOTDIR) code = Status::Code::kNotFound;
  if (error == ENOSPC || error == EDQUOT) code = Status::Code::kNoSpace;
  return Status(code, fmt::format("{} {}: {}", what, path, std::strerror(error)));
}

// Descriptors of files that are being written. A forked child closes them: it would keep a lock
// that says its parent is writing after the parent has died.
class OpenDescriptors {
 public:
  using Slot = std::atomic<int>;
  /// A slot that holds `descriptor`; null where too many files are open.
  static Slot* add(int descriptor) {
    static const int registered = ::pthread_atfork(nullptr, nullptr, close_all);
    (void)registered;
    for (Slot& slot : slots_) {
      int free = kFree;
      if (slot.compare_exchange_strong(free, descriptor + 1)) return &slot;
    }
    return nullptr;
  }
  static int descriptor(const Slot& slot) { return slot.load() - 1; }
  static void release(Slot* slot) { slot->store(kFree); }

 private:
  // A slot holds the descriptor and one more, so that static memory is free slots.
  static constexpr int kFree = 0;
  static constexpr int kClosedInChild = -1;
  static void close_all() {  // Only what is allowed between fork and exec.
    for (Slot& slot : slots_) {
      if (slot.load() <= kFree) continue;
      ::close(descriptor(slot));
      slot.store(kClosedInChild);
    }
  }
  static inline std::array<Slot, 256> slots_{};
};

FileIdentity identity_of(const struct stat& facts) {
  return {static_cast<uint64_t>(facts.st_dev), static_cast<uint64_t>(facts.st_ino)};
}

bool take_write_lock(int descriptor) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return ::fcntl(descriptor, F_OFD_SETLK, &lock) == 0;
}

bool has_writer(int descriptor) {
  struct flock lock {};
  lock.l_type = F_RDLCK;
  lock.l_whence = SEEK_SET;
  return ::fcntl(descriptor, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

class PosixFile : public WritableFile {
 public:
  PosixFile(OpenDescriptors::Slot* slot, std::string path)
      : slot_(slot),
        path_(std::move(path)),
        locked_(take_write_lock(OpenDescriptors::descriptor(*slot))) {}
  ~PosixFile() override { (void)PosixFile::close(); }

  Status append(std::string_view bytes) override {
    if (Status status = expect_name(); !status.ok()) return status;
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor(), bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return from_errno("cannot write", path_, errno);
      }
      if (written == 0) return from_errno("cannot write", path_, ENOSPC);
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return Status();
  }

  Status sync() override {
    while (::fdatasync(descriptor()) != 0) {
      if (errno != EINTR) return from_errno("cannot sync", path_, errno);
    }
    return Status();
  }

  Status truncate(uint64_t size) override {
    if (Status status = expect_name(); !status.ok()) return status;
    const auto end = static_cast<off_t>(size);
    while (::ftruncate(descriptor(), end) != 0) {
      if (errno != EINTR) return from_errno("cannot truncate", path_, errno);
    }
    if (::lseek(descriptor(), end, SEEK_SET) != end) return from_errno("cannot seek", path_, errno);
    return Status();
  }

  bool locked() const override { return locked_; }

  Status close() override {
    if (slot_ == nullptr) return Status();
    const int open = descriptor();
    OpenDescriptors::release(std::exchange(slot_, nullptr));
    // Linux closes the descriptor even when close() is interrupted.
    if (open >= 0 && ::close(open) != 0 && errno != EINTR)
      return from_errno("cannot close", path_, errno);
    return Status();
  }

 private:
  int descriptor() const { return slot_ != nullptr ? OpenDescriptors::descriptor(*slot_) : -1; }

  // What is written to a file without a name is gone when it is closed.
  Status expect_name() const {
    struct stat facts {};
    if (::fstat(descriptor(), &facts) != 0) return from_errno("cannot write", path_, errno);
    if (facts.st_nlink > 0) return Status();
    return Status(Status::Code::kNotFound,
                  fmt::format("{} was removed while it was written", path_));
  }

  OpenDescriptors::Slot* slot_;
  std::string path_;
  bool locked_;
};

class PosixFileSystem : public FileSystem {
 public:
  Status create_directories(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error) return from_errno("cannot create directory", path, error.value());
    return Status();
  }

  Result<std::unique_ptr<WritableFile>> create(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) return from_errno("cannot create", path, errno);
    OpenDescriptors::Slot* slot = OpenDescriptors::add(descriptor);
    if (slot == nullptr) {
      ::close(descriptor);
      ::unlink(path.c_str());
      return from_errno("cannot create", path, EMFILE);
    }
    return std::unique_ptr<WritableFile>(new PosixFile(slot, path));
  }

  Status sync_directory(const std::string& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return from_errno("cannot open directory", path, errno);
    const int failed = ::fsync(descriptor);
    const int error = errno;
    ::close(descriptor);
    // Some file systems cannot sync a directory and say EINVAL.
    if (failed != 0 && error != EINVAL) return from_errno("cannot sync directory", path, error);
    return Status();
  }
};

}  // namespace

FileSystem* FileSystem::system() {
  static auto* instance =
      new PosixFileSystem;  // Never destroyed: writers may outlive static destruction.
  return instance;
}

Status WritableFile::truncate(uint64_t) {
  return Status(Status::Code::kIoError, "this file cannot be truncated");
}

Status FileSystem::remove(const std::string& path) {
  if (::unlink(path.c_str()) != 0) return from_errno("cannot remove", path, errno);
  return Status();
}

ReadableFile::ReadableFile(int descriptor, FileIdentity identity, uint64_t size, bool locked,
                           std::string path)
    : descriptor_(descriptor),
      identity_(identity),
      size_(size),
      locked_(locked),
      path_(std::move(path)) {}

ReadableFile::~ReadableFile() { ::close(descriptor_); }

Result<std::unique_ptr<ReadableFile>> ReadableFile::open(const std::string& path) {
  // A pipe without a writer would be waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor < 0) {
    if (errno == ENXIO) {
      return Status(Status::Code::kNotATrace, fmt::format("{} is not a regular file", path));
    }
    return from_errno("cannot open", path, errno);
  }
  // Before the size: a writer that ends in between leaves the whole file.
  const bool locked = has_writer(descriptor);
  struct stat facts {};
  if (::fstat(descriptor, &facts) != 0) {
    const int error = errno;
    ::close(descriptor);
    return from_errno("cannot read", path, error);
  }
  if (!S_ISREG(facts.st_mode)) {
    ::close(descriptor);
    return Status(Status::Code::kNotATrace, fmt::format("{} is not a regular file", path));
  }
  return std::unique_ptr<ReadableFile>(new ReadableFile(
      descriptor, identity_of(facts), static_cast<uint64_t>(facts.st_size), locked, path));
}

Status ReadableFile::refresh() {
  const bool locked = has_writer(descriptor_);
  struct stat facts {};
  if (::fstat(descriptor_, &facts) != 0) return from_errno("cannot read", path_, errno);
  const auto named = look_at(path_);
  if (!named.ok()) return named.status();
  if (!(named.value().first == identity_)) {
    return Status(Status::Code::kNotFound,
                  fmt::format("{} was replaced by another file while it was read", path_));
  }
  locked_ = locked;
  size_ = static_cast<uint64_t>(facts.st_size);
  return Status();
}

Result<std::pair<FileIdentity, uint64_t>> look_at(const std::string& path) {
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0) return from_errno("cannot read", path, errno);
  return std::make_pair(identity_of(facts), static_cast<uint64_t>(facts.st_size));
}

Status ReadableFile::read(uint64_t offset, uint64_t size, std::string* out) const {
  if (offset > size_ || size > size_ - offset) {
    return Status(Status::Code::kCorrupt,
                  fmt::format("{}: {} bytes wanted at byte {}, but the file ends at byte {}", path_,
                              size, offset, size_));
  }
  out->resize(size);
  uint64_t done = 0;
  while (done < size) {
    const ssize_t got =
        ::pread(descriptor_, out->data() + done, size - done, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) continue;
      return from_errno("cannot read", path_, errno);
    }
    if (got == 0) {
      return Status(
          Status::Code::kIoError,
          fmt::format("{} became shorter while it was read, at byte {}", path_, offset + done));
    }
    done += static_cast<uint64_t>(got);
  }
  return Status();
}

// Not std::filesystem::directory_iterator, which ends the process where memory runs out.
Result<std::vector<std::string>> list_directory(const std::string& directory) {
  struct Close {
    void operator()(DIR* open) const { ::closedir(open); }
  };
  const std::unique_ptr<DIR, Close> entries(::opendir(directory.c_str()));
  if (!entries) return from_errno("cannot open directory", directory, errno);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(entries.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) return from_errno("cannot read directory", directory, errno);
  return names;
}

Result<std::vector<std::string>> list_segments(const std::string& directory) {
  auto listed = list_directory(directory);
  if (!listed.ok()) return listed.status();
  constexpr size_t kMostDigits = 18;  // As many as a number of 64 bits holds.
  std::vector<std::string> names;
  for (std::string& name : listed.value()) {
    const bool numbered =
        name.size() > 5 && name.size() <= kMostDigits + 5 &&
        name.compare(name.size() - 5, 5, ".mcap") == 0 &&
        std::all_of(name.begin(), name.end() - 5, [](char c) { return c >= '0' && c <= '9'; });
    if (numbered) names.push_back(std::move(name));
  }
  // Six digits at least: by length first, so that segment 1000000 follows 999999.
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  return names;
}

}  // namespace tycho::trace
