#include "output.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "tycho/trace/file_system.h"

namespace tycho::analyzer::command {
namespace {

namespace fs = std::filesystem;

constexpr unsigned int kPermissions = 07777;

Status refuse(const std::string& path, const std::string& why) {
  return Status(Status::Code::kInvalidArgument, fmt::format("cannot write {}: {}", path, why));
}

// The temporary file of an output that is being written, for a signal that ends the command.
std::array<char, 4096> unfinished{};

void remove_unfinished(int signal) {
  if (unfinished[0] != '\0') ::unlink(unfinished.data());
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void set_unfinished(const std::string& path) {
  unfinished[0] = '\0';
  if (path.size() + 1 > unfinished.size()) return;
  std::memcpy(unfinished.data() + 1, path.c_str() + (path.empty() ? 0 : 1),
              path.empty() ? 0 : path.size());
  if (path.empty()) return;
  unfinished[0] = path[0];
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    if (std::signal(signal, remove_unfinished) == SIG_IGN) std::signal(signal, SIG_IGN);
  }
}

// Where a chain of symbolic links ends, whether or not there is a file.
Result<std::string> follow(const std::string& path) {
  fs::path at = path;
  std::error_code error;
  constexpr int kMostLinks = 40;
  for (int links = 0; fs::is_symlink(fs::symlink_status(at, error)); ++links) {
    if (links == kMostLinks) return refuse(path, std::strerror(ELOOP));
    const fs::path next = fs::read_symlink(at, error);
    if (error) return refuse(path, error.message());
    at = next.is_absolute() ? next : at.parent_path() / next;
  }
  return at.string();
}

bool starts_as_a_trace(const std::string& path) {
  constexpr std::string_view kMagic{"\x89MCAP0\r\n", 8};
  const auto file = trace::ReadableFile::open(path);
  std::string head;
  return file.ok() && file.value()->read(0, kMagic.size(), &head).ok() && head == kMagic;
}

bool is_same_file(const struct stat& facts, const std::string& path) {
  struct stat other {};
  return ::stat(path.c_str(), &other) == 0 && other.st_dev == facts.st_dev &&
         other.st_ino == facts.st_ino;
}

bool belongs_to(const struct stat& facts, const std::string& run) {
  if (is_same_file(facts, run)) return true;
  const auto segments = trace::list_segments(run);
  if (!segments.ok()) return false;
  for (const std::string& name : segments.value()) {
    if (is_same_file(facts, (fs::path(run) / name).string())) return true;
  }
  return false;
}

// A new file of such a name would be read as a segment of the run.
bool would_join(const std::string& target, const std::string& run) {
  const auto directory_of = [](const fs::path& path) {
    return path.parent_path().empty() ? std::string(".") : path.parent_path().string();
  };
  struct stat directory {};
  if (fs::path(target).extension() != ".mcap" ||
      ::stat(directory_of(target).c_str(), &directory) != 0) {
    return false;
  }
  std::error_code error;
  return is_same_file(directory, fs::is_directory(run, error) ? run : directory_of(run));
}

}  // namespace

Result<std::unique_ptr<Output>> Output::open(const std::string& path,
                                             const std::vector<std::string>& runs) {
  std::unique_ptr<Output> output(new Output);
  if (path.empty() || path == "-" || path == "/dev/stdout") {
    output->stream_ = stdout;
    return output;
  }
  output->shown_ = path;
  if (Status status = output->open_file(path, runs); !status.ok()) return status;
  return output;
}

Status Output::open_file(const std::string& path, const std::vector<std::string>& runs) {
  owned_ = true;
  struct stat facts {};
  const bool exists = ::stat(path.c_str(), &facts) == 0;
  if (!exists && errno != ENOENT) return failure(errno);
  // A descriptor of this process may stand in the middle of a file.
  const bool in_place = (exists && !S_ISREG(facts.st_mode)) || path.rfind("/dev/fd/", 0) == 0 ||
                        path.rfind("/proc/", 0) == 0 || path == "/dev/stderr";
  if (exists && S_ISDIR(facts.st_mode)) return failure(EISDIR);
  if (in_place) {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (descriptor < 0) return failure(errno);
    stream_ = ::fdopen(descriptor, "wb");
    return stream_ != nullptr ? Status() : failure(errno);
  }
  auto target = follow(path);
  if (!target.ok()) return target.status();
  for (const std::string& run : runs) {
    if (exists ? belongs_to(facts, run) : would_join(target.value(), run))
      return refuse(path, "it is part of the trace that is read");
  }
  if (exists && ::access(path.c_str(), W_OK) != 0) return failure(errno);
  if (exists && starts_as_a_trace(target.value()))
    return refuse(path, "it is a trace, which would be lost");
  return open_beside(target.value(), exists ? facts.st_mode & kPermissions : 0);
}

Status Output::open_beside(const std::string& target, unsigned int mode) {
  const fs::path directory = fs::path(target).parent_path();
  std::string name = ((directory.empty() ? fs::path(".") : directory) / ".tycho-XXXXXX").string();
  const int descriptor = ::mkostemp(name.data(), O_CLOEXEC);
  if (descriptor < 0) return failure(errno);
  target_ = target;
  temporary_ = name;
  set_unfinished(temporary_);
  if (mode == 0) {
    const mode_t mask = ::umask(0);
    ::umask(mask);
    mode = 0666 & ~mask;
  }
  stream_ = ::fdopen(descriptor, "wb");
  if (stream_ == nullptr || ::fchmod(descriptor, mode) != 0) return failure(errno);
  return Status();
}

Output::~Output() {
  if (owned_ && stream_ != nullptr) std::fclose(stream_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  set_unfinished("");
}

Status Output::failure(int error) const {
  return Status(error == ENOSPC ? Status::Code::kNoSpace : Status::Code::kIoError,
                fmt::format("cannot write {}: {}", shown_, std::strerror(error)));
}

Status Output::commit() {
  // An error that a write met before is no longer in errno.
  errno = 0;
  bool written = std::ferror(stream_) == 0;
  written = std::fflush(stream_) == 0 && written;
  if (written && !temporary_.empty()) written = ::fsync(::fileno(stream_)) == 0;
  int error = errno;
  if (owned_) {
    errno = 0;
    const bool closed = std::fclose(stream_) == 0;
    stream_ = nullptr;
    if (!closed && written) error = errno;
    written = closed && written;
  }
  if (!written) return failure(error != 0 ? error : EIO);
  if (!temporary_.empty()) {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) return failure(errno);
    temporary_.clear();
  }
  return Status();
}

Status write_output(const std::string& path, const std::vector<std::string>& runs,
                    const std::string& text) {
  auto output = Output::open(path, runs);
  if (!output.ok()) return output.status();
  std::FILE* stream = output.value()->stream();
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stream) != text.size()) {
    const int error = errno;
    if (stream == stdout) std::clearerr(stdout);
    return Status(
        Status::Code::kIoError,
        fmt::format("cannot write {}: {}", path.empty() || path == "-" ? "the output" : path,
                    std::strerror(error)));
  }
  return output.value()->commit();
}

}  // namespace tycho::analyzer::command
