#include "src/alerts/alert_sender.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "src/alerts/alerts.h"

namespace tycho::analyzer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Alert alert(const std::string& code, const std::string& path = "a") {
  Alert alert;
  alert.code = code;
  alert.path = path;
  alert.severity = Severity::kAlarm;
  return alert;
}

/// Does what a test says, and remembers what it was told.
class FakeHook : public AlertHook {
 public:
  struct Log {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Alert> told;
    bool hangs = false;
    bool ignores_cancel = false;
    bool cancelled = false;
    std::function<Outcome(size_t attempt)> answer = [](size_t) { return Outcome{true, false, ""}; };
    void wait_for(size_t attempts) {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return told.size() >= attempts; });
    }
    void release() {
      const std::lock_guard<std::mutex> lock(mutex);
      hangs = false;
      changed.notify_all();
    }
  };
  explicit FakeHook(std::shared_ptr<Log> log) : log_(std::move(log)) {}
  std::string name() const override { return "the fake"; }
  Outcome deliver(const Alert& alert) override {
    std::unique_lock<std::mutex> lock(log_->mutex);
    log_->told.push_back(alert);
    log_->changed.notify_all();
    log_->changed.wait(lock,
                       [&] { return !log_->hangs || (log_->cancelled && !log_->ignores_cancel); });
    if (log_->hangs) return {false, false, "cancelled"};
    return log_->answer(log_->told.size());
  }
  void cancel() override {
    const std::lock_guard<std::mutex> lock(log_->mutex);
    log_->cancelled = true;
    log_->changed.notify_all();
  }

 private:
  std::shared_ptr<Log> log_;
};

AlertSenderOptions quick() {
  AlertSenderOptions options;
  options.first_pause = milliseconds(1);
  options.longest_pause = milliseconds(4);
  return options;
}

std::string codes(const FakeHook::Log& log) {
  std::string all;
  for (const Alert& each : log.told) all += each.code + " ";
  return all;
}

TEST(AlertSender, TellsInOrder) {
  auto log = std::make_shared<FakeHook::Log>();
  AlertSender sender(std::make_unique<FakeHook>(log), quick());
  for (const char* code : {"x", "y", "z"}) sender.send(alert(code));
  sender.close(seconds(60));
  EXPECT_EQ(codes(*log), "x y z ");
  EXPECT_EQ(sender.counters().sent, 3u);
  EXPECT_FALSE(sender.take_trouble());
  sender.send(alert("late"));
  EXPECT_EQ(sender.counters().dropped, 1u);
}

TEST(AlertSender, TriesAgainAndKeepsTheOrder) {
  auto log = std::make_shared<FakeHook::Log>();
  log->answer = [](size_t attempt) {
    return attempt < 4 ? AlertHook::Outcome{false, true, "busy"}
                       : AlertHook::Outcome{true, false, ""};
  };
  AlertSender sender(std::make_unique<FakeHook>(log), quick());
  sender.send(alert("x"));
  sender.send(alert("y"));
  sender.close(seconds(60));
  EXPECT_EQ(codes(*log), "x x x x y ");
  EXPECT_EQ(sender.counters().sent, 2u);
  EXPECT_EQ(sender.counters().attempts, 5u);
  EXPECT_EQ(sender.take_trouble().value_or(""),
            "an alert could not be delivered to the fake: busy");
  EXPECT_FALSE(sender.take_trouble());  // Once.
}

TEST(AlertSender, GivesUpAfterSomeAttemptsAndAtOnceWhereItIsHopeless) {
  auto log = std::make_shared<FakeHook::Log>();
  log->answer = [](size_t attempt) -> AlertHook::Outcome {
    if (attempt > 6) throw std::runtime_error("broken");
    return {false, true, "busy"};
  };
  AlertSender sender(std::make_unique<FakeHook>(log), quick());
  sender.send(alert("x"));
  sender.send(alert("y"));
  sender.close(seconds(60));
  EXPECT_EQ(codes(*log), "x x x x x x y ");
  EXPECT_EQ(sender.counters().failed, 2u);
  EXPECT_EQ(sender.counters().sent, 0u);
}

TEST(AlertSender, NeverWaitsAndDropsWhatIsTooMuch) {
  auto log = std::make_shared<FakeHook::Log>();
  log->hangs = true;
  AlertSenderOptions options = quick();
  options.most_waiting = 5;
  options.per_minute = 1000;
  AlertSender sender(std::make_unique<FakeHook>(log), options);
  for (int i = 0; i < 20; ++i) sender.send(alert(std::to_string(i)));
  log->wait_for(1);
  EXPECT_EQ(sender.counters().dropped, 15u);
  log->release();
  sender.close(seconds(60));
  EXPECT_EQ(codes(*log), "0 1 2 3 4 ");
  EXPECT_EQ(sender.counters().sent, 5u);
  EXPECT_TRUE(sender.take_trouble());
}

TEST(AlertSender, EndsWhileAHookHangs) {
  for (const bool ignores : {false, true}) {
    auto log = std::make_shared<FakeHook::Log>();
    log->hangs = true;
    log->ignores_cancel = ignores;
    AlertSenderOptions options = quick();
    if (ignores) options.last_wait = milliseconds(10);
    {
      AlertSender sender(std::make_unique<FakeHook>(log), options);
      sender.send(alert("x"));
      sender.send(alert("y"));
      log->wait_for(1);
      sender.close(milliseconds(10));
      EXPECT_EQ(sender.counters().dropped, 2u);
      EXPECT_EQ(sender.counters().sent, 0u);
      // A thread that was left behind is not waited for again without end.
    }
    EXPECT_TRUE(log->cancelled);
    log->release();  // It finds that nobody waits for it.
  }
}

TEST(AlertSender, EndsWhileItWaitsToTryAgain) {
  auto log = std::make_shared<FakeHook::Log>();
  log->answer = [](size_t) { return AlertHook::Outcome{false, true, "busy"}; };
  AlertSenderOptions options;
  options.first_pause = std::chrono::hours(1);
  AlertSender sender(std::make_unique<FakeHook>(log), options);
  sender.send(alert("x"));
  log->wait_for(1);
  sender.close(milliseconds(10));
  EXPECT_EQ(sender.counters().dropped, 1u);
}

TEST(AlertLimit, LetsTheSameAlarmThroughOnceInAWhile) {
  AlertLimit limit(seconds(300), 1000);
  const AlertLimit::Clock::time_point start{};
  EXPECT_TRUE(limit.allows(alert("x"), start));
  EXPECT_FALSE(limit.allows(alert("x"), start + seconds(299)));
  EXPECT_TRUE(limit.allows(alert("x", "other run"), start + seconds(299)));
  EXPECT_TRUE(limit.allows(alert("y"), start + seconds(299)));
  Alert milder = alert("x");
  milder.severity = Severity::kWarning;
  EXPECT_TRUE(limit.allows(milder, start + seconds(299)));
  Alert elsewhere = alert("x");
  elsewhere.scope = "layer:1";
  EXPECT_TRUE(limit.allows(elsewhere, start + seconds(299)));
  EXPECT_TRUE(limit.allows(alert("x"), start + seconds(300)));
}

TEST(AlertLimit, LetsSoManyThroughInAMinute) {
  AlertLimit limit(milliseconds(0), 3);
  const AlertLimit::Clock::time_point start{};
  int through = 0;
  for (int i = 0; i < 120; ++i) through += limit.allows(alert("x"), start + seconds(i)) ? 1 : 0;
  EXPECT_EQ(through, 6);
  AlertLimit none(milliseconds(0), 0);
  EXPECT_FALSE(none.allows(alert("x"), start));
}

TEST(AlertSender, SaysHowManyWereLeftOut) {
  auto log = std::make_shared<FakeHook::Log>();
  AlertSender sender(std::make_unique<FakeHook>(log), quick());
  for (int i = 0; i < 5; ++i) sender.send(alert("x"));
  sender.send(alert("y"));
  sender.close(seconds(60));
  EXPECT_EQ(codes(*log), "x y ");
  EXPECT_EQ(log->told[1].left_out, 4u);
  EXPECT_EQ(sender.counters().left_out, 4u);
  EXPECT_EQ(losses_text(sender.counters()),
            "alerts: 2 sent, 0 failed, 0 dropped, 4 left out by the limit");
  EXPECT_EQ(losses_text(AlertCounters()), "");
}

}  // namespace
}  // namespace tycho::analyzer
