#include "terminal.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace tycho::analyzer::command {
namespace {

sigset_t signals_waited_for() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP}) {
    // What the caller of this program ignores stays ignored (nohup).
    struct sigaction action {};
    if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) continue;
    sigaddset(&set, signal);
  }
  return set;
}

void put(const std::string& text) {
  (void)std::fputs(text.c_str(), stdout);
  (void)std::fflush(stdout);
}

}  // namespace

Signals::Signals() {
  const sigset_t set = signals_waited_for();
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  descriptor_ = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

Signals::~Signals() {
  if (descriptor_ >= 0) ::close(descriptor_);
  const sigset_t set = signals_waited_for();
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

Waited Signals::wait(int milliseconds, int input, int output) {
  std::array<struct pollfd, 3> watched = {
      {{descriptor_, POLLIN, 0}, {input, POLLIN, 0}, {output, 0, 0}}};
  const int ready = ::poll(watched.data(), watched.size(), milliseconds);
  if (ready < 0) return errno == EINTR ? Waited::kTime : Waited::kQuit;
  if (ready == 0) return Waited::kTime;
  Waited result = Waited::kTime;
  struct signalfd_siginfo info {};
  while (::read(descriptor_, &info, sizeof info) == static_cast<ssize_t>(sizeof info)) {
    if (info.ssi_signo == SIGWINCH) {
      if (result == Waited::kTime) result = Waited::kResized;
    } else if (info.ssi_signo == SIGTSTP) {
      stop_requested_ = true;
      if (result == Waited::kTime) result = Waited::kResized;
    } else {
      quit_signal_ = static_cast<int>(info.ssi_signo);
      result = Waited::kQuit;
    }
  }
  if (result == Waited::kQuit) return result;
  if ((watched[1].revents & POLLIN) != 0) {
    std::array<char, 64> keys{};
    const ssize_t got = ::read(input, keys.data(), keys.size());
    if (got <= 0) return Waited::kQuit;
    if (std::any_of(keys.begin(), keys.begin() + got, [](char key) { return key == 'q'; }))
      return Waited::kQuit;
  } else if ((watched[1].revents & (POLLHUP | POLLERR)) != 0) {
    return Waited::kQuit;
  }
  if ((watched[2].revents & (POLLHUP | POLLERR)) != 0) return Waited::kClosed;
  return result;
}

bool Signals::take_stop_request() {
  const bool asked = stop_requested_;
  stop_requested_ = false;
  return asked;
}

void Signals::stop() { (void)::kill(::getpid(), SIGSTOP); }

void Screen::enter() {
  if (entered_) return;
  entered_ = true;
  // Without the terminal's wrapping a line that is wider than thought is cut, not broken.
  put("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J");
  // A process in the background would be stopped for asking.
  keys_ = ::isatty(STDIN_FILENO) != 0 && ::tcgetpgrp(STDIN_FILENO) == ::getpgrp() &&
          ::tcgetattr(STDIN_FILENO, &before_) == 0;
  if (!keys_) return;
  struct termios quiet = before_;
  quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  keys_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &quiet) == 0;
}

void Screen::leave() {
  if (!entered_) return;
  entered_ = false;
  put("\x1b[?7h\x1b[?25h\x1b[?1049l");
  if (keys_) (void)::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  keys_ = false;
}

bool Screen::draw(const std::vector<std::string>& lines) {
  std::string out = "\x1b[H";
  for (size_t i = 0; i < lines.size(); ++i)
    out += lines[i] + "\x1b[K" + (i + 1 < lines.size() ? "\r\n" : "");
  out += "\x1b[J";
  return std::fputs(out.c_str(), stdout) >= 0 && std::fflush(stdout) == 0;
}

bool shows_unicode() {
  // As the C library: the first of these that is set and not empty counts.
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::string text(value);
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text.find("utf-8") != std::string::npos || text.find("utf8") != std::string::npos;
  }
  return false;
}

int terminal_height() {
  struct winsize size {};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_row : 0;
}

}  // namespace tycho::analyzer::command
