#pragma once

#include <sys/types.h>
#include <termios.h>

#include <string>
#include <vector>

namespace tycho::analyzer::command {

/// What ended a wait.
enum class Waited { kTime, kQuit, kResized, kClosed };

/// Waits, and is told of signals meanwhile: interrupt, terminate and hang-up end the command, and
/// none of them ends the process by itself while this lives. One at a time, on the only thread.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  /// Up to `milliseconds`. `input`: a terminal whose key q or Ctrl-C quits, or -1. `output`: a
  /// descriptor whose reader may go away (kClosed), or -1.
  Waited wait(int milliseconds, int input, int output);
  /// The signal that asked to quit; 0: none did.
  int quit_signal() const { return quit_signal_; }
  /// Whether Ctrl-Z was pressed; reading it takes it back. Who drew a screen takes it away, calls
  /// stop(), and draws it again.
  bool take_stop_request();
  void stop();

 private:
  int descriptor_ = -1;
  int quit_signal_ = 0;
  bool stop_requested_ = false;
};

/// The other screen of the terminal, on which a picture is drawn over and over; leaving it brings
/// back what stood there. Keys are not shown meanwhile.
class Screen {
 public:
  Screen() = default;
  ~Screen() { leave(); }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;
  void enter();
  void leave();
  /// False where it cannot be written.
  bool draw(const std::vector<std::string>& lines);
  /// Standard input, where keys can be read from it; else -1.
  int keys() const { return keys_ ? 0 : -1; }

 private:
  bool entered_ = false;
  bool keys_ = false;
  struct termios before_ {};
};

/// Whether the environment says that text is UTF-8.
bool shows_unicode();
/// Lines of the terminal; 0 where that is not known.
int terminal_height();

}  // namespace tycho::analyzer::command
