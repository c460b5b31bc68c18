// What a command does to files and terminals that are not its own.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/printable.h"
#include "tests/golden/command_run.h"

namespace tycho::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class OutputTest : public CommandTest {
 protected:
  std::string old_file(const std::string& name) {
    write_file(scratch_.path(name), "kept");
    return scratch_.path(name);
  }
  /// Every command that writes a file, told to write `output`; `run` stands for what it reads.
  std::vector<std::string> commands(const std::string& run, const std::string& output) {
    std::vector<std::string> all;
    for (const char* format : {"csv", "jsonl", "tensorboard"})
      all.push_back("export " + run + " --format " + format + " -o " + output);
    for (const char* format : {"html", "text", "json"}) {
      all.push_back("report " + run + " --format " + format + " -o " + output);
      all.push_back("compare " + run + " " + run + " --format " + format + " -o " + output);
    }
    all.push_back("compare " + run + " " + run + " --html " + output);
    all.push_back("compare " + run + " " + run + " --json " + output);
    return all;
  }
  void expect_no_litter() {
    for (const auto& entry : fs::recursive_directory_iterator(scratch_.path("")))
      EXPECT_THAT(entry.path().filename().string(), Not(HasSubstr(".tycho-")));
  }
};

TEST_F(OutputTest, AFailingCommandLeavesItsTargetAsItWas) {
  const std::string target = old_file("old.csv");
  write_file(scratch_.path("text.mcap"), "this is no trace, though it is long enough to be one\n");
  for (const std::string& run : {scratch_.path("missing"), scratch_.path("text.mcap")}) {
    for (const std::string& command : commands(run, target)) {
      EXPECT_EQ(this->run(command).exit_code, 1) << command;
      EXPECT_EQ(read_file(target), "kept") << command;
    }
  }
  expect_no_litter();
}

TEST_F(OutputTest, NoOutputReplacesATrace) {
  const std::string path = segment(sample());
  const std::string before = read_file(path);
  const std::string link = scratch_.path("link");
  fs::create_symlink(path, link);
  const std::string hard = scratch_.path("hard");
  fs::create_hard_link(path, hard);
  const std::string other = scratch_.path("other.mcap");
  fs::copy_file(path, other);
  for (const std::string& target : {path, link, hard, other, sample() + "/000007.mcap"}) {
    for (const std::string& command : commands(sample(), target)) {
      EXPECT_EQ(run(command).exit_code, 1) << command;
      EXPECT_EQ(read_file(path), before) << command;
    }
  }
  EXPECT_EQ(run("export " + path + " -o " + path).exit_code, 1);
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(read_file(other), before);
  EXPECT_FALSE(fs::exists(sample() + "/000007.mcap"));
  EXPECT_TRUE(fs::is_symlink(link));
  expect_no_litter();
}

TEST_F(OutputTest, WhatIsNoRegularFileIsNeverRemoved) {
  // A device that is always full, by another name: the test would remove the real one.
  const std::string full = scratch_.path("full");
  fs::create_symlink("/dev/full", full);
  const std::string directory = scratch_.path("directory");
  fs::create_directory(directory);
  for (const std::string& target : {full, directory}) {
    for (const std::string& command : commands(sample(), target)) {
      const Outcome outcome = run(command);
      EXPECT_EQ(outcome.exit_code, 1) << command;
      EXPECT_THAT(outcome.err, AllOf(HasSubstr("cannot write"), HasSubstr(target))) << command;
    }
  }
  EXPECT_TRUE(fs::is_symlink(full));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_TRUE(fs::is_directory(directory));
  EXPECT_EQ(run("report " + sample() + " -o /dev/null").exit_code, 0);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(OutputTest, AFileIsReplacedAsAWholeAndKeepsItsLinkAndPermissions) {
  const std::string target = old_file("old.csv");
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  const std::string link = scratch_.path("link");
  fs::create_symlink("old.csv", link);
  EXPECT_EQ(run("export " + sample() + " -o " + link).exit_code, 0);
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_THAT(read_file(target), HasSubstr("step,scope,statistic"));
  EXPECT_EQ(fs::status(target).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  const std::string dangling = scratch_.path("dangling");
  fs::create_symlink("new.csv", dangling);
  EXPECT_EQ(run("export " + sample() + " -o " + dangling).exit_code, 0);
  EXPECT_TRUE(fs::is_symlink(dangling));
  EXPECT_EQ(read_file(scratch_.path("new.csv")), read_file(target));
  const std::string loop = scratch_.path("loop");
  fs::create_symlink("loop", loop);
  EXPECT_EQ(run("export " + sample() + " -o " + loop).exit_code, 1);
  expect_no_litter();
}

TEST_F(OutputTest, RecoverMakesAWholeRunOrNothing) {
  const std::string path = segment(sample());
  const std::string before = read_file(path);
  for (const std::string& target : {sample(), path, sample() + "/000009.mcap", path + "/x"}) {
    EXPECT_EQ(run("recover " + sample() + " " + target).exit_code, 1) << target;
  }
  fs::create_symlink("nowhere", scratch_.path("dangling"));
  EXPECT_EQ(run("recover " + sample() + " " + scratch_.path("dangling")).exit_code, 1);
  EXPECT_EQ(run("recover " + scratch_.path("missing") + " " + scratch_.path("x")).exit_code, 1);
  EXPECT_FALSE(fs::exists(scratch_.path("x")));
  EXPECT_EQ(read_file(path), before);
  EXPECT_EQ(run("recover " + sample() + " " + scratch_.path("y/")).exit_code, 0);
  EXPECT_EQ(run("verify " + scratch_.path("y")).exit_code, 0);
  expect_no_litter();
}

TEST_F(OutputTest, ClosedStreamsAndPipesAreErrorsOfWriting) {
  const std::string run = sample();
  for (const std::string& command :
       {"report " + run, "export " + run, "info " + run, "verify " + run, "replay " + run,
        std::string("laws"), std::string("--help"), "compare " + run + " " + run}) {
    EXPECT_EQ(shell(command, " >&- 2>&-"), 1) << command;
    EXPECT_EQ(shell(command, " >/dev/full 2>/dev/full"), 1) << command;
    // A pipe that nobody reads, for both.
    const int status = shell(command, " 2>&1 | true; exit 0");
    EXPECT_EQ(status, 0) << command;
    // Written before the reader was gone, or not.
    const std::string whole = std::to_string(shell(command, " >/dev/null 2>&1"));
    EXPECT_EQ(
        std::system(("bash -c '" TYCHO_COMMAND " " + command +
                     " 2>&1 | true; s=${PIPESTATUS[0]}; test $s -eq 1 -o $s -eq " + whole + "'")
                        .c_str()),
        0)
        << command;
  }
  for (const std::string& command : {std::string("nonsense"), std::string("report missing")}) {
    EXPECT_EQ(std::system(("bash -c '" TYCHO_COMMAND " " + command +
                           " 2>&1 | true; test ${PIPESTATUS[0]} -le 2'")
                              .c_str()),
              0)
        << command;
    EXPECT_LE(shell(command, " >&- 2>&-"), 2);
    EXPECT_GE(shell(command, " >&- 2>&-"), 1);
  }
  // An error message must not land in the file that is written.
  EXPECT_EQ(shell("export " + run + " -o " + scratch_.path("a.csv"), " <&- >&- 2>&-"), 0);
  EXPECT_EQ(shell("export " + run + " -o " + scratch_.path("b.csv"), ""), 0);
  EXPECT_EQ(read_file(scratch_.path("a.csv")), read_file(scratch_.path("b.csv")));
}

TEST_F(OutputTest, APipeInTheRunDirectoryHoldsNobodyUp) {
  ASSERT_EQ(::mkfifo((sample() + "/000001.mcap").c_str(), 0600), 0);
  for (const char* command : {"report", "info", "verify", "export", "replay"}) {
    const Outcome outcome = run(std::string(command) + " " + sample());
    EXPECT_EQ(outcome.exit_code, 3) << command;
    EXPECT_THAT(outcome.out + outcome.err, HasSubstr("not a regular file")) << command;
  }
}

TEST_F(OutputTest, ADeadWriterIsSaidByEveryCommandAndALivingOneIsNoLoss) {
  const std::string directory = scratch_.path("run");
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, sample_run("a"), sample_model(2), sample_registry());
  ASSERT_TRUE(writer.ok());
  write_steps(writer.value().get(), 0, 20, 2);
  ASSERT_TRUE(writer.value()->flush().ok());
  for (const char* command : {"report", "info", "verify", "export", "replay"}) {
    const Outcome outcome = run(std::string(command) + " " + directory);
    EXPECT_EQ(outcome.exit_code, 0) << command << outcome.err;
  }
  EXPECT_THAT(run("verify " + directory).out, HasSubstr("being written"));
  // What the writer leaves when it is killed now.
  fs::create_directory(scratch_.path("dead"));
  fs::copy_file(directory + "/000000.mcap", scratch_.path("dead/000000.mcap"));
  for (const char* command : {"report", "info", "verify", "export", "replay"}) {
    const Outcome outcome = run(std::string(command) + " " + scratch_.path("dead"));
    EXPECT_EQ(outcome.exit_code, 3) << command;
    EXPECT_THAT(outcome.out + outcome.err,
                HasSubstr("the writer died; up to 1 s of steps after step 19 may be missing"))
        << command;
  }
  EXPECT_EQ(run("compare " + scratch_.path("dead") + " " + sample()).exit_code, 3);
  EXPECT_THAT(run("report " + scratch_.path("dead")).out, Not(HasSubstr("nothing was lost")));
}

// Names come from the user's program, or from whoever made the file.
TEST_F(OutputTest, NamesDoNotReachTheTerminalAsCommands) {
  const std::string evil =
      "a\x1b]0;owned\x07\x1b[31m\x9b"
      "2J\xc2\x9b"
      "31m\xe2\x80\xae\r\x7f";
  const std::string shown = analyzer::printable(evil);
  EXPECT_EQ(shown, "a\\x1b]0;owned\\x07\\x1b[31m\\x9b2J\\xc2\\x9b31m\\xe2\\x80\\xae\\x0d\\x7f");
  EXPECT_EQ(analyzer::printable("\xce\xbc \xe2\x86\x92 \xf0\x9f\x99\x82 \\ \n", "\n"),
            "\xce\xbc \xe2\x86\x92 \xf0\x9f\x99\x82 \\ \n");
  EXPECT_EQ(analyzer::printable("\xc0\x9b \xed\xa0\x80 \xf8"), "\\xc0\\x9b \\xed\\xa0\\x80 \\xf8");
  // Only what is UTF-8 can stand in a trace.
  const std::string name =
      "b\x1b]0;owned\x07\xc2\x9b"
      "31m\x7f";
  const std::string directory = scratch_.path("run");
  v1::RunDescription description = sample_run("id" + name);
  description.set_run_name(name);
  description.set_optimizer(name);
  description.add_command_line(name);
  (*description.mutable_environment())[name] = name;
  v1::ModelDescription model = sample_model(2);
  model.mutable_layer(0)->set_path(name);
  model.mutable_parameter(0)->set_name(name);
  v1::StatisticRegistry registry = sample_registry();
  registry.mutable_statistic(1)->set_name("=1+1" + name);
  registry.mutable_statistic(1)->set_definition(name);
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, description, model, registry);
  ASSERT_TRUE(writer.ok());
  write_steps(writer.value().get(), 0, 20, 2);
  v1::Event event;
  event.set_kind(v1::Event::NOTICE);
  event.set_code(name);
  event.set_message(name);
  event.set_count(1);
  writer.value()->write(event, 1);
  v1::Record record = sample_record(20, 2);
  writer.value()->write(name, record, 1);
  ASSERT_TRUE(writer.value()->close().ok());
  for (const char* command :
       {"report", "info", "info --statistics", "verify", "replay", "export --format csv",
        "export --format jsonl", "report --format json"}) {
    const Outcome outcome = run(std::string(command) + " " + directory);
    for (const std::string& text : {outcome.out, outcome.err}) {
      EXPECT_EQ(text.find_first_of("\x1b\x07\x7f"), std::string::npos) << command;
      EXPECT_THAT(text, Not(HasSubstr("\xc2\x9b"))) << command;
    }
  }
  const Outcome compared = run("compare " + directory + " " + sample());
  EXPECT_EQ((compared.out + compared.err).find_first_of("\x1b\x07\x7f"), std::string::npos);
  EXPECT_THAT(run("export " + directory).out, HasSubstr(",\"'=1+1b\\x1b]0;"));
  const std::string json = run("export --format jsonl " + directory).out;
  EXPECT_EQ(nlohmann::json::parse(json.substr(0, json.find('\n')))["statistic"], "=1+1" + name);
  const Outcome missing = run("report '" + scratch_.path("\x1b[31m") + "'");
  EXPECT_THAT(missing.err, HasSubstr("\\x1b[31m"));
}

}  // namespace
}  // namespace tycho::testing
