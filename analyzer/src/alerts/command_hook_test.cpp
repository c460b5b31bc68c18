#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/alerts/alert_hook.h"
#include "tests/support/trace_samples.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using std::chrono::milliseconds;
using std::chrono::seconds;

Alert an_alert() {
  Alert alert;
  alert.code = "loss_diverged";
  alert.severity = Severity::kAlarm;
  alert.title = "The loss diverged";
  alert.text = "It is 3 times what it was.";
  alert.run = "a";
  alert.step = 130;
  alert.value = 0.1;
  return alert;
}

AlertHook::Outcome run(const std::string& command, const Alert& alert = an_alert(),
                       milliseconds timeout = seconds(60)) {
  return make_command_hook(command, timeout)->deliver(alert);
}

TEST(CommandHook, GetsTheAlertOnItsInputAndInItsEnvironment) {
  ScratchDirectory scratch;
  const std::string out = scratch.path("out");
  Alert alert = an_alert();
  alert.loss = NAN;
  const auto outcome =
      run("cat > '" + out + "'; env | grep '^TYCHO_ALARM_' | sort >> '" + out + "'", alert);
  EXPECT_TRUE(outcome.delivered) << outcome.why;
  const std::string text = read_file(out);
  const auto object = nlohmann::json::parse(text.substr(0, text.find('\n')));
  EXPECT_EQ(object["code"], "loss_diverged");
  EXPECT_EQ(object["severity"], "alarm");
  EXPECT_EQ(object["step"], 130);
  EXPECT_EQ(object["value"], 0.1);
  EXPECT_TRUE(object["loss"].is_null());
  EXPECT_TRUE(object["last_step"].is_null());
  EXPECT_EQ(text.substr(text.find('\n') + 1),
            "TYCHO_ALARM_CODE=loss_diverged\nTYCHO_ALARM_ID=\nTYCHO_ALARM_LAST_STEP=\n"
            "TYCHO_ALARM_LOSS=\nTYCHO_ALARM_PATH=\nTYCHO_ALARM_RUN=a\nTYCHO_ALARM_SCOPE=run\n"
            "TYCHO_ALARM_SEVERITY=alarm\nTYCHO_ALARM_STATE=\nTYCHO_ALARM_STEP=130\n"
            "TYCHO_ALARM_TEXT=It is 3 times what it was.\nTYCHO_ALARM_TITLE=The loss diverged\n"
            "TYCHO_ALARM_VALUE=0.1\n");
}

TEST(CommandHook, RunsNothingThatARunIsCalled) {
  ScratchDirectory scratch;
  const std::string touched = scratch.path("touched");
  for (const std::string& name :
       {"$(touch " + touched + ")", "`touch " + touched + "`", "'; touch " + touched + "; '",
        "\"; touch " + touched + "; \"", "\n touch " + touched + "\n",
        std::string("a\0b\xff\x1b[2J", 8), std::string(300'000, 'x')}) {
    Alert alert = an_alert();
    alert.run = alert.title = alert.text = alert.path = alert.scope = alert.id = name;
    const auto outcome =
        run("echo $TYCHO_ALARM_RUN \"$TYCHO_ALARM_TITLE\" $TYCHO_ALARM_TEXT; cat; true", alert);
    EXPECT_TRUE(outcome.delivered) << outcome.why;
    EXPECT_FALSE(std::filesystem::exists(touched)) << name;
  }
}

TEST(CommandHook, SaysHowItFailed) {
  const auto failed = run("echo 'no route to host' >&2; echo more >&2; exit 3");
  EXPECT_FALSE(failed.delivered);
  EXPECT_TRUE(failed.try_again);
  EXPECT_EQ(failed.why, "it ended with 3: no route to host");
  const auto missing = run("/no/such/program --flag");
  EXPECT_FALSE(missing.delivered);
  EXPECT_FALSE(missing.try_again);
  EXPECT_NE(missing.why.find("it ended with 127"), std::string::npos) << missing.why;
  EXPECT_NE(missing.why.find("not found"), std::string::npos) << missing.why;
  const auto killed = run("kill -USR1 $$; sleep 60");
  EXPECT_FALSE(killed.delivered);
  EXPECT_TRUE(killed.try_again);
  EXPECT_EQ(killed.why.rfind("it ended with 138", 0) == 0 ||
                killed.why.rfind("it was ended by signal 10", 0) == 0,
            true)
      << killed.why;
}

TEST(CommandHook, KeepsTheBeginningOfMuchThatIsWritten) {
  // More than a pipe holds: it would wait for a reader for ever.
  const auto much = run("yes error | head -c 1000000 >&2; yes output | head -c 1000000; exit 1");
  EXPECT_EQ(much.why, "it ended with 1: error");
  EXPECT_TRUE(run("exit 0").delivered);             // Its input is not read.
  EXPECT_TRUE(run("exec <&- >&- 2>&-").delivered);  // It has no streams.
}

TEST(CommandHook, EndsWhatTakesTooLong) {
  const auto outcome = run("trap '' TERM; sleep 1000; sleep 1000", an_alert(), milliseconds(100));
  EXPECT_FALSE(outcome.delivered);
  EXPECT_TRUE(outcome.try_again);
  EXPECT_EQ(outcome.why, "it took longer than 0.1 s");
}

// Whoever has it open is read from a named pipe, which needs no view of other processes: /proc may
// be another process namespace's, or missing.
TEST(CommandHook, EndsAllThatACommandStarted) {
  ScratchDirectory scratch;
  const std::string pipe = scratch.path("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  const auto hook = make_command_hook(
      "trap '' TERM; exec 3> '" + pipe + "'; sleep 1000 & echo started >&3; wait; sleep 1000",
      seconds(1000));
  std::array<char, 16> bytes{};
  std::thread canceller([&] {
    while (::read(reader, bytes.data(), bytes.size()) <= 0)
      std::this_thread::sleep_for(milliseconds(5));
    hook->cancel();
  });
  EXPECT_FALSE(hook->deliver(an_alert()).delivered);
  canceller.join();
  ssize_t got = -1;  // 0: nobody can write any more
  for (int i = 0; i < 2000 && got != 0; ++i) {
    got = ::read(reader, bytes.data(), bytes.size());
    if (got < 0) std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(got, 0);
  ::close(reader);
}

TEST(CommandHook, CanBeCancelled) {
  const auto hook = make_command_hook("sleep 1000", seconds(1000));
  std::thread canceller([&] {
    std::this_thread::sleep_for(milliseconds(100));
    hook->cancel();
  });
  const auto outcome = hook->deliver(an_alert());
  canceller.join();
  EXPECT_FALSE(outcome.delivered);
  EXPECT_EQ(outcome.why, "there was no time left");
  EXPECT_FALSE(hook->deliver(an_alert()).delivered);
}

TEST(CommandHook, HandsDownNeitherFilesNorSignals) {
  // At numbers that the shell can name, without O_CLOEXEC.
  std::array<int, 2> ends = {-1, -1};
  ASSERT_EQ(::pipe(ends.data()), 0);
  constexpr int kReader = 8;
  constexpr int kWriter = 9;
  const int kept_8 = ::dup(kReader);
  const int kept_9 = ::dup(kWriter);
  ASSERT_EQ(::dup2(ends[0], kReader), kReader);
  ASSERT_EQ(::dup2(ends[1], kWriter), kWriter);
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const auto pipe_before = std::signal(SIGPIPE, SIG_IGN);
  const auto open_files =
      run("for each in 0 1 2 3 4 5 6 7 8 9; do"
          " if (eval \": <&$each\") 2>/dev/null; then all=\"$all $each\"; fi; done; echo $all >&2; "
          "exit 1");
  // A shell does not hear of a signal that is blocked or ignored.
  const auto blocked = run("kill -USR1 $$; exit 0");
  const auto ignored = run("kill -PIPE $$; exit 0");
  (void)std::signal(SIGPIPE, pipe_before);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  for (const auto& [kept, number] : {std::pair{kept_8, kReader}, std::pair{kept_9, kWriter}}) {
    if (kept < 0) {
      ::close(number);
      continue;
    }
    ::dup2(kept, number);
    ::close(kept);
  }
  for (const int end : ends)
    if (end != kReader && end != kWriter) ::close(end);
  EXPECT_EQ(open_files.why, "it ended with 1: 0 1 2");
  EXPECT_EQ(blocked.why, "it was ended by signal 10");
  EXPECT_EQ(ignored.why, "it was ended by signal 13");
}

}  // namespace
}  // namespace tycho::analyzer
