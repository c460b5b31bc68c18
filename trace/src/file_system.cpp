#include "tycho/trace/file_system.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

namespace tycho::trace {
namespace {

Status from_errno(const std::string& what, const std::string& path, int error) {
  Status::Code code = Status::Code::kIoError;
  if (error == ENOENT || error == ENOTDIR) code = Status::Code::kNotFound;
  if (error == ENOSPC || error == EDQUOT) code = Status::Code::kNoSpace;
  return Status(code, fmt::format("{} {}: {}", what, path, std::strerror(error)));
}

class PosixFile : public WritableFile {
 public:
  PosixFile(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  ~PosixFile() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  Status append(std::string_view bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
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
    while (::fdatasync(descriptor_) != 0) {
      if (errno != EINTR) return from_errno("cannot sync", path_, errno);
    }
    return Status();
  }

  Status close() override {
    if (descriptor_ < 0) return Status();
    const int descriptor = descriptor_;
    descriptor_ = -1;
    // Linux closes the descriptor even when close() is interrupted.
    if (::close(descriptor) != 0 && errno != EINTR) return from_errno("cannot close", path_, errno);
    return Status();
  }

 private:
  int descriptor_;
  std::string path_;
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
    return std::unique_ptr<WritableFile>(new PosixFile(descriptor, path));
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

ReadableFile::ReadableFile(int descriptor, uint64_t size, std::string path)
    : descriptor_(descriptor), size_(size), path_(std::move(path)) {}

ReadableFile::~ReadableFile() { ::close(descriptor_); }

Result<std::unique_ptr<ReadableFile>> ReadableFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return from_errno("cannot open", path, errno);
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
  return std::unique_ptr<ReadableFile>(
      new ReadableFile(descriptor, static_cast<uint64_t>(facts.st_size), path));
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

Result<std::vector<std::string>> list_segments(const std::string& directory) {
  std::error_code error;
  std::filesystem::directory_iterator entries(directory, error);
  if (error) return from_errno("cannot open directory", directory, error.value());
  std::vector<std::string> names;
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    const bool numbered =
        name.size() > 5 && name.compare(name.size() - 5, 5, ".mcap") == 0 &&
        std::all_of(name.begin(), name.end() - 5, [](char c) { return c >= '0' && c <= '9'; });
    if (numbered) names.push_back(name);
  }
  // Six digits at least: by length first, so that segment 1000000 follows 999999.
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  return names;
}

}  // namespace tycho::trace
