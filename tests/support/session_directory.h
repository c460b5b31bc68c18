#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>

#include "tycho/session_options.h"

namespace tycho {

/// A test with a run directory of its own, which goes with it.
class SessionDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(info->test_suite_name()) + "_" + info->name();
    for (char& letter : name) letter = letter == '/' ? '_' : letter;
    directory_ = (std::filesystem::temp_directory_path() /
                  ("tycho_" + name + "_" + std::to_string(getpid())))
                     .string();
    std::filesystem::remove_all(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  /// Every probe at every step.
  SessionOptions full() const {
    return SessionOptions(directory_).preset(Preset::full).overhead_budget(std::nullopt);
  }
  std::string directory_;
};

}  // namespace tycho
