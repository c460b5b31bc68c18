#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/golden/command_run.h"

namespace tycho::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

TEST_F(CommandTest, EveryCommandReadsAnIntactRunInSilence) {
  for (const char* command :
       {"report", "info", "verify", "replay", "export --format csv", "export --format jsonl",
        "report --format json", "report --format html"}) {
    const Outcome outcome = run(std::string(command) + " " + sample());
    EXPECT_EQ(outcome.exit_code, 0) << command << ": " << outcome.err;
    EXPECT_THAT(outcome.err, IsEmpty()) << command;
    EXPECT_FALSE(outcome.out.empty()) << command;
  }
}

TEST_F(CommandTest, WrongUsageIsTwo) {
  for (const char* arguments :
       {"", "nonsense", "report", "report x --format pdf", "export x --format xml",
        "report x --fail-on everything", "info x y", "laws no_such_law"}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_FALSE(outcome.err.empty() && outcome.out.empty()) << arguments;
  }
}

TEST_F(CommandTest, HelpAndVersionSucceed) {
  EXPECT_EQ(run("--help").exit_code, 0);
  const Outcome version = run("--version");
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, StartsWith("tycho "));
  EXPECT_EQ(run("laws").exit_code, 0);
}

TEST_F(CommandTest, WhatIsNoTraceFailsWithItsName) {
  write_file(scratch_.path("empty.mcap"), "");
  write_file(scratch_.path("text.mcap"), "this is no trace, though it is long enough to be one\n");
  std::filesystem::create_directory(scratch_.path("bare"));
  for (const char* name : {"missing", "empty.mcap", "text.mcap", "bare"}) {
    for (const char* command : {"report", "info", "verify", "export", "replay"}) {
      const Outcome outcome = run(std::string(command) + " " + scratch_.path(name));
      EXPECT_EQ(outcome.exit_code, 1) << command << " " << name;
      EXPECT_THAT(outcome.err, StartsWith("tycho: ")) << command;
      EXPECT_THAT(outcome.err, HasSubstr(name)) << command;
    }
  }
}

TEST_F(CommandTest, ACutTraceIsReadAndItsLossIsToldAndCanBeRecovered) {
  const std::string path = segment(sample());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) * 2 / 3);
  EXPECT_EQ(run("verify " + sample()).exit_code, 3);
  EXPECT_EQ(run("export " + sample()).exit_code, 3);
  const Outcome report = run("report " + sample());
  EXPECT_EQ(report.exit_code, 3);
  EXPECT_THAT(report.out, HasSubstr("The trace is not complete"));
  EXPECT_THAT(report.err, HasSubstr("cannot be read"));
  EXPECT_THAT(report.err, HasSubstr("the writer died; up to 1 s of steps"));
  EXPECT_EQ(run("recover " + sample() + " " + scratch_.path("rescued")).exit_code, 3);
  EXPECT_EQ(run("verify " + scratch_.path("rescued")).exit_code, 0);
  EXPECT_EQ(run("recover " + sample() + " " + scratch_.path("rescued")).exit_code, 1);
  const auto json = nlohmann::json::parse(run("report --format json " + sample()).out);
  EXPECT_FALSE(json.at("run").at("lost").at("skipped").empty());
  EXPECT_THAT(run("report " + scratch_.path("rescued")).out, HasSubstr("recovered; "));
}

// A residual of one half at each of 50 steps: no rounding explains that.
void write_violation(const std::string& directory) {
  v1::StatisticRegistry registry;
  v1::StatisticDefinition* statistic = registry.add_statistic();
  statistic->set_name("symmetry_residual");
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, sample_run("violation"), sample_model(2), registry);
  ASSERT_TRUE(writer.ok());
  for (int64_t step = 0; step < 50; ++step) {
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_scope(v1::SCOPE_PARAMETER);
    column->add_entity(0);
    column->add_value(0.5);
    writer.value()->write("symmetry", record, step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

TEST_F(CommandTest, FailsOnViolationsWhenAskedTo) {
  const std::string directory = scratch_.path("violation");
  write_violation(directory);
  const Outcome report = run("report " + directory);
  EXPECT_EQ(report.exit_code, 0);
  EXPECT_THAT(report.out, HasSubstr("VIOLATED"));
  const Outcome gated = run("report --fail-on violated " + directory);
  EXPECT_EQ(gated.exit_code, 4);
  EXPECT_THAT(gated.err, HasSubstr("violated"));
  EXPECT_EQ(run("report --fail-on violated " + sample()).exit_code, 0);
  EXPECT_EQ(run("report --fail-on alarm " + directory).exit_code, 0);
}

TEST_F(CommandTest, FailsOnAlarmsWhenAskedTo) {
  const std::string directory = scratch_.path("diverged");
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, sample_run("diverged"), sample_model(1), sample_registry());
  ASSERT_TRUE(writer.ok());
  for (int64_t step = 0; step < 60; ++step) {
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(step < 20 ? 2.3 : 3.6e22);
    writer.value()->write("loss", record, step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
  const Outcome report = run("report " + directory);
  EXPECT_EQ(report.exit_code, 0);
  EXPECT_THAT(report.out, HasSubstr("The loss diverged"));
  for (const char* gate : {"alarm", "violated,alarm"}) {
    const Outcome gated = run("report --fail-on " + std::string(gate) + " " + directory);
    EXPECT_EQ(gated.exit_code, 4) << gate;
    EXPECT_THAT(gated.err, HasSubstr("alarm: The loss diverged (step 20)"));
  }
  EXPECT_EQ(run("report --fail-on violated " + directory).exit_code, 0);
  EXPECT_EQ(run("report --fail-on violated,alarm " + sample()).exit_code, 0);
}

TEST_F(CommandTest, ReplayTakesARangeOfSteps) {
  const Outcome part = run("replay --from 50 --to 60 " + sample());
  EXPECT_EQ(part.exit_code, 0) << part.err;
  EXPECT_NE(part.out, run("replay " + sample()).out);
  EXPECT_EQ(run("replay --from 60 --to 50 " + sample()).exit_code, 2);
  EXPECT_EQ(run("replay --speed -1 " + sample()).exit_code, 2);
}

/// 40 steps, a nanosecond apart, of a loss that is not finite at step 0 and from step 25 to 29.
std::string write_faltering_run(const std::string& directory) {
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, sample_run("faltering"), sample_model(1), sample_registry());
  EXPECT_TRUE(writer.ok());
  for (int64_t step = 0; step < 40; ++step) {
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(step == 0 || (step >= 25 && step < 30) ? std::nan("") : 1.0);
    writer.value()->write("loss", record, step + 1);
  }
  EXPECT_TRUE(writer.value()->close().ok());
  return directory;
}

TEST_F(CommandTest, ReplaySaysWhatWasKnownAtTheStepsAtWhichItWas) {
  const Outcome all = run("replay " + write_faltering_run(scratch_.path("faltering")));
  EXPECT_EQ(all.exit_code, 0) << all.err;
  EXPECT_THAT(all.out, HasSubstr("step 25: alarm: loss_not_finite run: The loss is not finite\n"));
  EXPECT_THAT(all.out, HasSubstr("step 30: warning: loss_not_finite run: The loss was not finite"));
  EXPECT_EQ(run("replay --speed 1e9 " + scratch_.path("faltering")).out, all.out);
  std::istringstream lines(all.out);
  int64_t last = 0;
  std::string word;
  for (std::string line; std::getline(lines, line);) {
    int64_t step = -1;
    if (line.rfind("end: ", 0) == 0) {
      EXPECT_EQ(line.rfind("end: step 39: ", 0), 0u) << line;
      EXPECT_FALSE(std::getline(lines, line)) << line;
      break;
    }
    std::istringstream(line) >> word >> step;
    EXPECT_GE(step, last) << line;
    last = step;
  }
}

TEST_F(CommandTest, ReplayWritesLineByLineAndEndsWhenItIsInterrupted) {
  const std::string directory = write_faltering_run(scratch_.path("faltering"));
  for (const int signal : {SIGINT, SIGTERM}) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      // The next step comes in an hour.
      ::execl(TYCHO_COMMAND, "tycho", "replay", "--speed", "1e-12", directory.c_str(), nullptr);
      ::_exit(99);
    }
    ::close(ends[1]);
    char first = 0;
    EXPECT_EQ(::read(ends[0], &first, 1), 1)
        << "what is known at the first step is written at once";
    EXPECT_EQ(::kill(child, signal), 0);
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 128 + signal);
    ::close(ends[0]);
  }
}

TEST_F(CommandTest, ThePageOnLawsSaysWhatTheCommandSays) {
  EXPECT_THAT(read_file(TYCHO_DOCS "/laws.md"), HasSubstr(run("laws --all").out));
}

TEST_F(CommandTest, OutputThatCannotBeWrittenIsAnError) {
  for (const char* command :
       {"report --format html", "export --format csv", "export --format tensorboard", "info"}) {
    const Outcome full = run(std::string(command) + " " + sample(), " >/dev/full");
    EXPECT_EQ(full.exit_code, 1) << command;
    EXPECT_THAT(full.err, HasSubstr("cannot write")) << command;
  }
  const Outcome nowhere =
      run("report -o " + scratch_.path("no/such/directory/r.html") + " " + sample());
  EXPECT_EQ(nowhere.exit_code, 1);
  EXPECT_THAT(nowhere.err, HasSubstr("no/such/directory/r.html"));
}

TEST_F(CommandTest, TheNameOfTheOutputChoosesTheFormat) {
  run("report -o " + scratch_.path("r.json") + " " + sample());
  EXPECT_TRUE(nlohmann::json::accept(read_file(scratch_.path("r.json"))));
  run("report -o " + scratch_.path("r.html") + " " + sample());
  EXPECT_THAT(read_file(scratch_.path("r.html")), StartsWith("<!doctype html>"));
}

}  // namespace
}  // namespace tycho::testing
