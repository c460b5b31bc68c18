#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/golden/golden_run.h"

namespace tycho::testing {

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class CommandTest : public ::testing::Test {
 protected:
  /// Runs the command through a shell; `redirect` replaces where its output goes.
  Outcome run(const std::string& arguments, const std::string& redirect = "") {
    const std::string out = scratch_.path("out");
    const std::string err = scratch_.path("err");
    const std::string to = redirect.empty() ? " >'" + out + "'" : redirect;
    const std::string line = std::string(TYCHO_COMMAND) + " " + arguments + to + " 2>'" + err + "'";
    const int status = std::system(line.c_str());
    Outcome outcome;
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (redirect.empty()) outcome.out = read_file(out);
    outcome.err = read_file(err);
    return outcome;
  }

  /// The same with standard output and error of its own: `to` is what stands behind the arguments.
  int shell(const std::string& arguments, const std::string& to) {
    const int status = std::system((std::string(TYCHO_COMMAND) + " " + arguments + to).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string sample() {
    const std::string directory = scratch_.path("sample");
    if (!std::filesystem::exists(directory)) write_long_run(directory, 200);
    return directory;
  }

  std::string segment(const std::string& directory) {
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.path().extension() == ".mcap") return entry.path().string();
    }
    return "";
  }

  ScratchDirectory scratch_;
};

}  // namespace tycho::testing
