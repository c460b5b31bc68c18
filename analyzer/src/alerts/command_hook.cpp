#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "alert_hook.h"
#include "src/printable.h"

namespace tycho::analyzer {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kMostWords = 300;  // bytes of standard error that are kept
constexpr milliseconds kGrace{1000};

class Descriptor {
 public:
  explicit Descriptor(int descriptor = -1) : descriptor_(descriptor) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return descriptor_; }
  void close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }

 private:
  int descriptor_;
};

// A file without a name: whoever does not read it keeps nobody waiting.
int file_of(const std::string& text) {
  const int file = ::memfd_create("tycho-alert", MFD_CLOEXEC);
  size_t written = 0;
  while (file >= 0 && written < text.size()) {
    const ssize_t now = ::write(file, text.data() + written, text.size() - written);
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) {
      ::close(file);
      return -1;
    }
    written += static_cast<size_t>(now);
  }
  if (file >= 0) (void)::lseek(file, 0, SEEK_SET);
  return file;
}

struct Attributes {
  Attributes() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  ~Attributes() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;
  posix_spawn_file_actions_t actions{};
  posix_spawnattr_t attributes{};
};

// 0, or why it was not started. The thread's blocked signals and this program's ignored ones are
// not its child's.
int start(const std::string& command, const Alert& alert, int input, int errors, pid_t* child) {
  Attributes with;
  posix_spawn_file_actions_adddup2(&with.actions, input, STDIN_FILENO);
  posix_spawn_file_actions_addopen(&with.actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&with.actions, errors, STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&with.actions, STDERR_FILENO + 1);
  sigset_t none;
  sigset_t ordinary;
  sigemptyset(&none);
  sigfillset(&ordinary);
  posix_spawnattr_setsigmask(&with.attributes, &none);
  posix_spawnattr_setsigdefault(&with.attributes, &ordinary);
  posix_spawnattr_setpgroup(&with.attributes, 0);
  posix_spawnattr_setflags(&with.attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  std::vector<std::string> variables = alert_environment(alert);
  for (char** each = environ; *each != nullptr; ++each) {
    if (std::strncmp(*each, "TYCHO_ALARM_", 12) != 0) variables.emplace_back(*each);
  }
  std::vector<char*> environment;
  environment.reserve(variables.size() + 1);
  for (std::string& each : variables) environment.push_back(each.data());
  environment.push_back(nullptr);
  std::string shell = "sh";
  std::string option = "-c";
  std::string line = command;
  const std::array<char*, 4> arguments = {shell.data(), option.data(), line.data(), nullptr};
  return ::posix_spawn(child, "/bin/sh", &with.actions, &with.attributes, arguments.data(),
                       environment.data());
}

/// Reads what there is and keeps the beginning of it. False: there will be no more.
bool drain(int errors, std::string* words) {
  std::array<char, 4096> bytes{};
  for (;;) {
    const ssize_t got = ::read(errors, bytes.data(), bytes.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 && errno == EAGAIN;
    const size_t room = kMostWords - std::min(kMostWords, words->size());
    words->append(bytes.data(), std::min(room, static_cast<size_t>(got)));
  }
}

class CommandHook : public AlertHook {
 public:
  CommandHook(std::string command, milliseconds timeout)
      : command_(std::move(command)), timeout_(timeout) {}

  std::string name() const override { return "the command of --on-alarm"; }
  void cancel() override { cancelled_ = true; }
  Outcome deliver(const Alert& alert) override;

 private:
  const std::string command_;
  const milliseconds timeout_;
  std::atomic<bool> cancelled_{false};
};

AlertHook::Outcome CommandHook::deliver(const Alert& alert) {
  if (cancelled_) return {false, false, "there was no time left"};
  const auto broken = [](const char* what, int error) {
    return Outcome{false, true, fmt::format("{}: {}", what, std::strerror(error))};
  };
  const Descriptor input(file_of(alert_json(alert) + "\n"));
  if (input.get() < 0) return broken("cannot make its input", errno);
  std::array<int, 2> ends = {-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return broken("cannot make a pipe", errno);
  const Descriptor errors(ends[0]);
  Descriptor its_errors(ends[1]);
  (void)::fcntl(errors.get(), F_SETFL, O_NONBLOCK);
  pid_t child = -1;
  if (const int error = start(command_, alert, input.get(), its_errors.get(), &child); error != 0)
    return broken("cannot start /bin/sh", error);
  its_errors.close();

  std::string words;
  bool listens = true;
  int signalled = 0;
  int status = 0;
  Clock::time_point patience = Clock::now() + timeout_;
  for (;;) {
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (listens) listens = drain(errors.get(), &words);
    if (ended == child) break;
    if (ended < 0 && errno != EINTR) return broken("cannot wait for it", errno);
    if (Clock::now() >= patience || (cancelled_ && signalled == 0)) {
      // Not even SIGKILL ends what waits for a device.
      if (signalled == SIGKILL) return {false, true, "it does not end"};
      signalled = signalled == 0 ? SIGTERM : SIGKILL;
      (void)::kill(-child, signalled);
      patience = Clock::now() + kGrace;
    }
    struct pollfd watched = {listens ? errors.get() : -1, POLLIN, 0};
    (void)::poll(&watched, 1, 20);
  }
  const std::string said = words.empty() ? "" : ": " + printable(words.substr(0, words.find('\n')));
  if (signalled != 0) {
    // What it started may not have heard of the end.
    (void)::kill(-child, SIGKILL);
    return {false, true,
            cancelled_ ? "there was no time left"
                       : fmt::format("it took longer than {:g} s",
                                     static_cast<double>(timeout_.count()) / 1000) +
                             said};
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {true, false, ""};
  if (WIFSIGNALED(status))
    return {false, true, fmt::format("it was ended by signal {}", WTERMSIG(status)) + said};
  const int code = WEXITSTATUS(status);
  return {false, code != 126 && code != 127, fmt::format("it ended with {}", code) + said};
}

}  // namespace

std::unique_ptr<AlertHook> make_command_hook(std::string command, milliseconds timeout) {
  return std::make_unique<CommandHook>(std::move(command), timeout);
}

}  // namespace tycho::analyzer
