#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/golden/command_run.h"

namespace tycho::testing {
namespace {

using nlohmann::json;

size_t columns_of(const std::string& line) {
  return static_cast<size_t>(std::count_if(line.begin(), line.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Losses of a run that breaks at `broken_at`; -1: it does not.
std::unique_ptr<trace::RunWriter> open_losses(const std::string& directory) {
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, sample_run("watched"), sample_model(2), sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

void write_loss(trace::RunWriter* writer, int64_t step, double value) {
  v1::Record record;
  record.set_step(step);
  auto* column = record.add_column();
  column->set_scope(v1::SCOPE_RUN);
  column->add_value(value);
  writer->write("loss", record, 1'000'000'000 + step * 10'000'000);
}

class WatchCommandTest : public CommandTest {};

TEST_F(WatchCommandTest, ShowsARunThatIsFinishedOn80ColumnsAndEnds) {
  for (const char* arguments : {"watch --once ", "watch --once --interval 5 "}) {
    const Outcome outcome = run(arguments + sample());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("finished  step 199"), std::string::npos) << outcome.out;
    for (const std::string& line : lines_of(outcome.out)) EXPECT_LE(columns_of(line), 80u) << line;
    EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos);
  }
}

TEST_F(WatchCommandTest, SaysALineAChangeWherePiped) {
  const Outcome outcome = run("watch " + sample());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos);
  const auto lines = lines_of(outcome.out);
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ(lines.back(), "step 199: the run is finished");
}

TEST_F(WatchCommandTest, FollowsARunFromBeforeItIsThereToItsEnd) {
  const std::string directory = scratch_.path("later");
  const std::string out = scratch_.path("out");
  const auto wait_until_it_says = [&](const std::string& word) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (read_file(out).find(word) == std::string::npos && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
  };
  std::thread trainer([&] {
    wait_until_it_says("\"waiting\"");
    auto writer = open_losses(directory);
    for (int64_t step = 0; step < 100; ++step) {
      write_loss(writer.get(), step, 1 / (1.0 + static_cast<double>(step)));
      if (step % 20 != 0) continue;
      EXPECT_TRUE(writer->flush().ok());
      wait_until_it_says("\"live\"");
    }
    EXPECT_TRUE(writer->close().ok());
  });
  const Outcome outcome = run("watch --interval 0.1 --json " + directory);
  trainer.join();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto lines = lines_of(outcome.out);
  ASSERT_GE(lines.size(), 2u);
  EXPECT_EQ(json::parse(lines.front())["state"], "waiting");
  int64_t step = -1;
  bool live = false;
  for (const std::string& line : lines) {
    const json object = json::parse(line);
    live = live || object["state"] == "live";
    if (object["step"].is_null()) continue;
    EXPECT_GE(object["step"].get<int64_t>(), step);
    step = object["step"].get<int64_t>();
  }
  EXPECT_TRUE(live);
  const json last = json::parse(lines.back());
  EXPECT_EQ(last["state"], "finished");
  EXPECT_EQ(last["step"], 99);
  EXPECT_NEAR(last["loss"].get<double>(), 0.01, 1e-12);
  EXPECT_NEAR(last["steps_per_second"].get<double>(), 100, 1e-6);
}

TEST_F(WatchCommandTest, EndsWhenTheAlarmComesThatIsWaitedFor) {
  const std::string directory = scratch_.path("broken");
  auto writer = open_losses(directory);
  for (int64_t step = 0; step < 100; ++step) write_loss(writer.get(), step, 1);
  for (int64_t step = 100; step < 110; ++step) write_loss(writer.get(), step, std::nan(""));
  ASSERT_TRUE(writer->flush().ok());
  // The run is still going on.
  for (const char* until : {"alarm", "loss_not_finite", "end,loss_not_finite"}) {
    const Outcome outcome = run(std::string("watch --until ") + until + " " + directory);
    EXPECT_EQ(outcome.exit_code, 4) << until << outcome.err;
    EXPECT_NE(outcome.out.find("step 100: alarm: "), std::string::npos) << outcome.out;
  }
  EXPECT_EQ(run("watch --until explosion " + directory).exit_code, 2);
  ASSERT_TRUE(writer->close().ok());
  EXPECT_EQ(run("watch --until loss_diverged " + directory).exit_code, 0);
  const Outcome once = run("watch --once --json --until alarm " + directory);
  EXPECT_EQ(once.exit_code, 4);
  const json object = json::parse(once.out);
  EXPECT_EQ(object["alarms"][0]["code"], "loss_not_finite");
  EXPECT_TRUE(object["loss"].is_null());
  EXPECT_FALSE(object["laws"].empty());
}

TEST_F(WatchCommandTest, SaysThatTheWriterDied) {
  const std::string directory = scratch_.path("died");
  std::filesystem::create_directories(directory);
  const std::string bytes = read_file(segment(sample()));
  write_file(directory + "/000000.mcap", bytes.substr(0, bytes.size() * 9 / 10));
  const Outcome outcome = run("watch " + directory);
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_NE(outcome.out.find("the writer died"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.err.find("the writer died"), std::string::npos) << outcome.err;
}

TEST_F(WatchCommandTest, RefusesWhatIsNoRun) {
  write_file(scratch_.path("notes.txt"), "notes");
  EXPECT_EQ(run("watch " + scratch_.path("notes.txt")).exit_code, 1);
  const Outcome missing = run("watch --once " + scratch_.path("missing"));
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_NE(missing.err.find("No such file"), std::string::npos) << missing.err;
  (void)sample();
  const Outcome above = run("watch --once " + scratch_.path(""));
  EXPECT_EQ(above.exit_code, 1);
  EXPECT_NE(above.err.find("there are runs below it: sample"), std::string::npos) << above.err;
}

TEST_F(WatchCommandTest, EndsOnASignalAndLeavesNothingBehind) {
  const std::string directory = scratch_.path("going");
  auto writer = open_losses(directory);
  write_loss(writer.get(), 0, 1);
  ASSERT_TRUE(writer->flush().ok());
  // `script` gives it a terminal; without one the pipe is tested.
  const std::string command =
      std::string("timeout -s INT 1 ") + TYCHO_COMMAND + " watch " + directory;
  EXPECT_EQ(std::system((command + " >/dev/null 2>&1").c_str()) >> 8, 124);
  if (std::system("script -qec true /dev/null </dev/null >/dev/null 2>&1") != 0)
    GTEST_SKIP() << "no pseudo-terminal can be made here; the pipe was tested";
  const std::string typescript = scratch_.path("typescript");
  (void)std::system(
      ("script -qec '" + command + "' " + typescript + " </dev/null >/dev/null").c_str());
  const std::string seen = read_file(typescript);
  const size_t entered = seen.find("\x1b[?1049h");
  const size_t left = seen.find("\x1b[?1049l");
  ASSERT_NE(entered, std::string::npos) << seen;
  ASSERT_NE(left, std::string::npos) << seen;
  EXPECT_LT(entered, left);
  EXPECT_NE(seen.find("\x1b[?25h"), std::string::npos);
  // The last picture stays on the screen that was there before.
  EXPECT_NE(seen.find("live  step 0", left), std::string::npos) << seen;
}

class AlarmHookTest : public WatchCommandTest {
 protected:
  std::string broken() {
    const std::string directory = scratch_.path("broken");
    auto writer = open_losses(directory);
    for (int64_t step = 0; step < 60; ++step)
      write_loss(writer.get(), step, step < 30 ? 1 / (1.0 + static_cast<double>(step)) : NAN);
    EXPECT_TRUE(writer->close().ok());
    return directory;
  }
};

TEST_F(AlarmHookTest, RunsACommandForAnAlarm) {
  const std::string told = scratch_.path("told");
  const std::string directory = broken();
  for (const char* how : {"", "--once ", "--json ", "--until alarm "}) {
    std::filesystem::remove(told);
    const Outcome outcome =
        run("watch " + directory + " " + how + "--on-alarm 'cat >> " + told + "'");
    EXPECT_EQ(outcome.exit_code, std::string(how) == "--until alarm " ? 4 : 0) << outcome.err;
    EXPECT_EQ(outcome.out.find("alerts"), std::string::npos) << outcome.out;
    const auto lines = lines_of(read_file(told));
    ASSERT_EQ(lines.size(), 1u) << how;
    const json alert = json::parse(lines[0]);
    EXPECT_EQ(alert["code"], "loss_not_finite");
    EXPECT_EQ(alert["step"], 30);
    EXPECT_EQ(alert["id"], "watched");
    EXPECT_EQ(alert["path"], directory);
  }
  // Nothing is told of a run that is well.
  std::filesystem::remove(told);
  EXPECT_EQ(run("watch " + sample() + " --on-alarm 'cat >> " + told + "'").exit_code, 0);
  EXPECT_FALSE(std::filesystem::exists(told));
}

TEST_F(AlarmHookTest, SaysOnceThatAHookFailsAndFollowsAllTheSame) {
  const Outcome outcome = run("watch " + broken() + " --on-alarm /no/such/program");
  EXPECT_EQ(outcome.exit_code, 0);
  const auto lines = lines_of(outcome.err);
  ASSERT_EQ(lines.size(), 2u) << outcome.err;
  EXPECT_EQ(lines[0].rfind("tycho: an alert could not be delivered to the command of --on-alarm: "
                           "it ended with 127: ",
                           0),
            0u)
      << lines[0];
  EXPECT_EQ(lines[1], "tycho: alerts: 0 sent, 1 failed, 0 dropped, 0 left out by the limit");
  EXPECT_NE(outcome.out.find("the run is finished"), std::string::npos);
}

TEST_F(AlarmHookTest, RefusesOptionsThatMeanNothing) {
  for (const char* options :
       {"--webhook ftp://example.org", "--webhook example.org", "--alert-from note",
        "--alert-interval -1", "--alert-interval soon"}) {
    const Outcome outcome = run("watch " + sample() + " " + options);
    EXPECT_EQ(outcome.exit_code, 2) << options;
    EXPECT_FALSE(outcome.err.empty());
  }
}

}  // namespace
}  // namespace tycho::testing
