#include "run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "tycho/trace/file_system.h"

namespace tycho {
namespace {

constexpr const char* kLock = ".tycho-lock";
constexpr int kMostNeighbours = 100000;

[[noreturn]] void refuse(const std::string& directory, const std::string& why) {
  throw OptionError(fmt::format("tycho: option directory = \"{}\": {}", directory, why));
}

/// Any segment, be it empty or damaged: what a run that died has left is not written over.
bool holds_run(const std::string& directory) {
  const auto names = trace::list_directory(directory);
  if (!names.ok()) return false;
  return std::any_of(names.value().begin(), names.value().end(), [](const std::string& name) {
    constexpr std::string_view kSegment = ".mcap";
    return name.size() > kSegment.size() &&
           name.compare(name.size() - kSegment.size(), kSegment.size(), kSegment) == 0;
  });
}

void create(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) refuse(directory, "it cannot be created: " + error.message());
  if (!std::filesystem::is_directory(directory, error)) refuse(directory, "it is not a directory");
}

}  // namespace

/// False where another session holds the claim. File systems without locks are trusted.
bool RunDirectory::claim(const std::string& directory) {
  const std::string file = (std::filesystem::path(directory) / kLock).string();
  for (;;) {
    const int lock = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (lock < 0) refuse(directory, fmt::format("it is not writable: {}", std::strerror(errno)));
    if (::flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(lock);
      return false;
    }
    // Whoever held it before may have removed the file, so that another one is locked by now.
    struct stat held {};
    struct stat there {};
    const bool current = ::fstat(lock, &held) == 0 && ::stat(file.c_str(), &there) == 0 &&
                         held.st_ino == there.st_ino && held.st_dev == there.st_dev;
    if (current) {
      lock_ = lock;
      path_ = directory;
      return true;
    }
    ::close(lock);
  }
}

RunDirectory::RunDirectory(const SessionOptions& options) {
  const std::string& asked = options.directory();
  if (asked.empty()) refuse(asked, "a directory is expected");
  create(asked);
  const bool claimed = claim(asked);
  if (options.resume()) {
    if (!claimed) refuse(asked, "another session writes to it, so it cannot be resumed");
    return;
  }
  const bool taken = holds_run(asked);
  if (claimed && !taken) return;
  const std::string why = claimed ? "it holds a run already" : "another session writes to it";
  release();
  if (options.is_exclusive()) {
    refuse(asked, why + "; choose another, or continue it with resume(step)");
  }
  std::string base = asked;
  while (base.size() > 1 && base.back() == '/') base.pop_back();
  for (int number = 2; number < kMostNeighbours; ++number) {
    const std::string neighbour = fmt::format("{}-{}", base, number);
    create(neighbour);
    if (!claim(neighbour)) continue;
    if (!holds_run(neighbour)) {
      moved_ = fmt::format("{}: {}; this run is written to {}", asked, why, neighbour);
      return;
    }
    release();
  }
  refuse(asked, why + ", and so do all its neighbours");
}

void RunDirectory::release() {
  if (lock_ < 0) return;
  ::unlink((std::filesystem::path(path_) / kLock).c_str());
  ::close(lock_);
  lock_ = -1;
}

void RunDirectory::abandon() {
  if (lock_ >= 0) ::close(lock_);
  lock_ = -1;
}

}  // namespace tycho
