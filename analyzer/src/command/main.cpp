#include <fcntl.h>
#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <sstream>

#include "command.h"
#include "output.h"
#include "src/printable.h"

namespace tycho::analyzer::command {

namespace {

// Closed, or a pipe that nobody reads: there is nobody to tell.
void put_on_stderr(const std::string& text) {
  (void)std::fputs(text.c_str(), stderr);
  (void)std::fflush(stderr);
}

// Files would be opened as standard streams that are closed, and output and messages go there.
void hold_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    // Opened the wrong way round, so that using it fails.
    const int flags = descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY;
    if (::fcntl(descriptor, F_GETFD) < 0) (void)::open("/dev/null", flags);
  }
}

int run_action(CLI::App* app, const Action& action, int argc, char** argv) {
  try {
    app->parse(argc, argv);
    return action();
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    std::ostringstream err;
    const int status = app->exit(error, out, err) == 0 ? kSuccess : kUsage;
    put_on_stderr(err.str());
    const Status written = write_output("", {}, out.str());
    return written.ok() || status != kSuccess ? status : fail(written);
  } catch (const std::bad_alloc&) {
    return fail(Status(Status::Code::kIoError, "memory is out"));
  } catch (const std::exception& error) {
    return fail(Status(Status::Code::kIoError, error.what()));
  }
}

}  // namespace

void say(const std::string& message) { put_on_stderr("tycho: " + printable(message) + "\n"); }

int fail(const Status& status) {
  say(status.message());
  return kFailure;
}

void show_progress(const std::string& message) { put_on_stderr("\r" + message + "\x1b[K"); }

int tell_losses(const std::vector<std::string>& losses) {
  constexpr size_t kMost = 10;
  for (size_t i = 0; i < losses.size() && i < kMost; ++i) say(losses[i]);
  if (losses.size() > kMost)
    say(fmt::format("and {} more; verify has them all", losses.size() - kMost));
  return losses.empty() ? kSuccess : kLossy;
}

bool stdout_is_terminal() { return ::isatty(STDOUT_FILENO) != 0; }
bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) != 0; }

int terminal_width() {
  struct winsize size {};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
}

std::string choose_format(const std::string& asked, const std::string& output) {
  if (!asked.empty()) return asked;
  const auto ends_with = [&](const std::string& ending) {
    return output.size() >= ending.size() &&
           output.compare(output.size() - ending.size(), ending.size(), ending) == 0;
  };
  if (output.empty() || output == "-" || ends_with(".txt")) return "text";
  return ends_with(".json") ? "json" : "html";
}

bool wants_colour() {
  const char* no_colour = std::getenv("NO_COLOR");
  return stdout_is_terminal() && (no_colour == nullptr || *no_colour == '\0');
}

}  // namespace tycho::analyzer::command

int main(int argc, char** argv) {
  namespace command = tycho::analyzer::command;
  std::signal(SIGPIPE, SIG_IGN);  // A closed pipe is an error of writing, said like any other.
  CLI::App app("Tycho: learning mechanics of LibTorch training runs", "tycho");
  app.set_version_flag("--version", "tycho " TYCHO_VERSION);
  app.require_subcommand(1);
  command::Action action;
  command::add_report(&app, &action);
  command::add_compare(&app, &action);
  command::add_watch(&app, &action);
  command::add_serve(&app, &action);
  command::add_replay(&app, &action);
  command::add_export(&app, &action);
  command::add_info(&app, &action);
  command::add_verify(&app, &action);
  command::add_recover(&app, &action);
  command::add_laws(&app, &action);
  command::hold_standard_streams();
  google::protobuf::SetLogHandler(nullptr);  // What is damaged is said by us, with its place.
  return command::run_action(&app, action, argc, argv);
}
