#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "command.h"

namespace tycho::analyzer::command {

int fail(const Status& status) {
  fmt::print(stderr, "tycho: {}\n", status.message());
  return kFailure;
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

Status write_output(const std::string& path, const std::string& text) {
  const bool to_file = !path.empty() && path != "-";
  std::FILE* out = to_file ? std::fopen(path.c_str(), "wb") : stdout;
  if (out == nullptr) {
    return Status(Status::Code::kIoError,
                  fmt::format("cannot write {}: {}", path, std::strerror(errno)));
  }
  bool written = std::fwrite(text.data(), 1, text.size(), out) == text.size();
  written = (to_file ? std::fclose(out) : std::fflush(out)) == 0 && written;
  if (written) return Status();
  const int error = errno;
  if (to_file) std::remove(path.c_str());
  return Status(
      Status::Code::kIoError,
      fmt::format("cannot write {}: {}", to_file ? path : "the output", std::strerror(error)));
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
  command::add_replay(&app, &action);
  command::add_export(&app, &action);
  command::add_info(&app, &action);
  command::add_verify(&app, &action);
  command::add_recover(&app, &action);
  command::add_laws(&app, &action);
  try {
    app.parse(argc, argv);
    return action();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? command::kSuccess : command::kUsage;
  } catch (const std::exception& error) {
    fmt::print(stderr, "tycho: {}\n", error.what());
    return command::kFailure;
  }
}
