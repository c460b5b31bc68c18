#include "src/serve/run_catalog.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <thread>

#include "src/serve/sample_runs.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using std::chrono::milliseconds;
namespace fs = std::filesystem;

class CatalogTest : public ::testing::Test {
 protected:
  CatalogTest() {
    options_.look_for_runs = milliseconds(50);
    options_.poll_live = milliseconds(20);
    options_.poll_ended = milliseconds(50);
  }
  // The card as soon as it says so; the last one there was where it does not within 20 s.
  std::shared_ptr<const RunCard> wait_for(const RunCatalog& catalog, const std::string& name,
                                          const std::function<bool(const RunCard&)>& says) {
    std::shared_ptr<const RunCard> card;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    uint64_t version = 0;
    while (std::chrono::steady_clock::now() < end) {
      card = catalog.card(name);
      if (card != nullptr && says(*card)) break;
      version = catalog.wait_for_change(version, milliseconds(100));
    }
    return card;
  }
  ScratchDirectory scratch_;
  CatalogOptions options_;
};

TEST_F(CatalogTest, FindsRunsAsTheyAppearAndFollowsThem) {
  fs::create_directories(scratch_.path("runs"));
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  EXPECT_TRUE(catalog.cards().cards.empty());
  EXPECT_EQ(catalog.card("a"), nullptr);
  EXPECT_EQ(catalog.page("a", 0, milliseconds(10)), nullptr);
  auto writer = open_run(scratch_.path("runs/a"), "a");
  write_losses(writer.get(), 0, 20);
  auto card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 19; });
  ASSERT_NE(card, nullptr);
  EXPECT_EQ(card->state, trace::RunState::kLive);
  EXPECT_EQ(card->title, "sample");
  EXPECT_NEAR(card->steps_per_second, 100, 1e-6);
  // Somebody looks: there are series now, also of what was read before.
  auto page = catalog.page("a", 0, std::chrono::seconds(20));
  ASSERT_NE(page, nullptr);
  EXPECT_FALSE(page->view["series"].empty());
  write_losses(writer.get(), 20, 40);
  const auto newer = catalog.page("a", page->version, std::chrono::seconds(20));
  ASSERT_NE(newer, nullptr);
  EXPECT_NE(newer->version, page->version);
  ASSERT_TRUE(writer->close().ok());
  card = wait_for(catalog, "a",
                  [](const RunCard& run) { return run.state == trace::RunState::kFinished; });
  EXPECT_EQ(card->step, 39);
  // Resumed, and gone.
  v1::RunDescription resumed = sample_run("a");
  resumed.set_resumed(true);
  resumed.set_resume_step(30);
  resumed.set_start_time_ns(5000);
  trace::RunWriterOptions writing;
  writing.directory = scratch_.path("runs/a");
  auto again = trace::RunWriter::open(writing, resumed, sample_model(2), sample_registry());
  ASSERT_TRUE(again.ok());
  write_losses(again.value().get(), 30, 60);
  card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 59; });
  EXPECT_EQ(card->state, trace::RunState::kLive);
  ASSERT_TRUE(again.value()->close().ok());
  (void)wait_for(catalog, "a",
                 [](const RunCard& run) { return run.state == trace::RunState::kFinished; });
  fs::remove_all(scratch_.path("runs/a"));
  card = wait_for(catalog, "a",
                  [](const RunCard& run) { return run.state == trace::RunState::kGone; });
  EXPECT_EQ(card->state, trace::RunState::kGone);
  catalog.stop();
}

TEST_F(CatalogTest, ForgetsARunThatIsGoneWhenNobodyLooks) {
  write_run(scratch_.path("runs/a"), "a");
  write_run(scratch_.path("runs/b"), "b");
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  ASSERT_NE(wait_for(catalog, "a", [](const RunCard& run) { return run.is_read; }), nullptr);
  fs::remove_all(scratch_.path("runs/a"));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (catalog.card("a") != nullptr && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(catalog.card("a"), nullptr);
  EXPECT_NE(catalog.card("b"), nullptr);
}

TEST_F(CatalogTest, TellsAlarmsOfWhatItSawHappen) {
  AlertOptions alert_options;
  const std::string told = scratch_.path("told");
  alert_options.command = "echo \"$TYCHO_ALARM_CODE $TYCHO_ALARM_ID\" >> '" + told + "'";
  auto alerts = Alerts::open(alert_options);
  ASSERT_TRUE(alerts.ok());
  options_.alerts = alerts.value().get();
  {
    auto old = open_run(scratch_.path("runs/old"), "old");
    write_losses(old.get(), 0, 20, NAN);
    EXPECT_TRUE(old->close().ok());
  }
  auto live = open_run(scratch_.path("runs/live"), "live");
  write_losses(live.get(), 0, 20);
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  const auto is_read = [](const RunCard& run) { return run.is_read; };
  for (const char* name : {"old", "live"}) ASSERT_NE(wait_for(catalog, name, is_read), nullptr);
  const auto is_broken = [](const RunCard& run) { return run.count(Severity::kAlarm) > 0; };
  write_losses(live.get(), 20, 40, NAN);
  EXPECT_TRUE(is_broken(*wait_for(catalog, "live", is_broken)));
  {
    auto brief = open_run(scratch_.path("runs/brief"), "brief");
    write_losses(brief.get(), 0, 20, NAN);
    EXPECT_TRUE(brief->close().ok());
  }
  EXPECT_TRUE(is_broken(*wait_for(catalog, "brief", is_broken)));
  EXPECT_TRUE(is_broken(*catalog.card("old")));
  catalog.stop();
  alerts.value()->close(std::chrono::seconds(60));
  EXPECT_EQ(catalog.alerts().sent, 2u);
  EXPECT_EQ(read_file(told), "loss_not_finite live\nloss_not_finite brief\n");
}

// A layer of which no unit speaks is no remark of the report, but an alarm of the LiveJudge.
void write_silent(trace::RunWriter* writer, int64_t from, int64_t to, double silent) {
  for (int64_t step = from; step < to; ++step) {
    v1::Record record;
    record.set_step(step);
    auto* column = record.add_column();
    column->set_statistic(1);
    column->set_scope(v1::SCOPE_LAYER);
    for (uint32_t layer = 0; layer < 2; ++layer) {
      column->add_entity(layer);
      column->add_value(layer == 0 ? silent : 0);
    }
    writer->write("activations", record, 1'000'000'000 + step * 10'000'000);
  }
  EXPECT_TRUE(writer->flush().ok());
}

TEST_F(CatalogTest, ShowsTheAlarmsOfTheLiveJudge) {
  v1::StatisticRegistry registry = sample_registry();
  ASSERT_GT(registry.statistic_size(), 1);
  registry.mutable_statistic(1)->set_name("dead_fraction");
  trace::RunWriterOptions writing;
  writing.directory = scratch_.path("runs/a");
  auto writer = trace::RunWriter::open(writing, sample_run("a"), sample_model(2), registry);
  ASSERT_TRUE(writer.ok());
  write_silent(writer.value().get(), 0, 30, 0);
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  const auto has_alarm = [](const RunCard& run) {
    return std::any_of(run.remarks.begin(), run.remarks.end(), [](const Remark& remark) {
      return remark.code == "layer_silent" && remark.step == 30;
    });
  };
  EXPECT_FALSE(
      has_alarm(*wait_for(catalog, "a", [](const RunCard& run) { return run.step == 29; })));
  write_silent(writer.value().get(), 30, 80, 1);
  EXPECT_TRUE(has_alarm(*wait_for(catalog, "a", has_alarm)));
  // It is over.
  write_silent(writer.value().get(), 80, 110, 0);
  const auto is_over = [&](const RunCard& run) { return !has_alarm(run); };
  EXPECT_TRUE(is_over(*wait_for(catalog, "a", is_over)));
  // It comes back, and stays so when the run ends.
  write_silent(writer.value().get(), 110, 160, 1);
  ASSERT_TRUE(writer.value()->close().ok());
  const auto ends_so = [](const RunCard& run) {
    return run.state == trace::RunState::kFinished &&
           std::any_of(run.remarks.begin(), run.remarks.end(), [](const Remark& remark) {
             return remark.code == "layer_silent" && remark.step == 110;
           });
  };
  EXPECT_TRUE(ends_so(*wait_for(catalog, "a", ends_so)));
  catalog.stop();
  // And whoever reads it afterwards, says the same as tycho watch.
  FollowedRun now(scratch_.path("runs/a"));
  FollowedRun without(scratch_.path("runs/a"), {true, false});
  for (FollowedRun* run : {&now, &without}) {
    while (run->poll(1 << 20)) {
    }
    run->judge();
  }
  ASSERT_EQ(now.remarks().size(), without.remarks().size());
  for (size_t i = 0; i < now.remarks().size(); ++i) {
    EXPECT_EQ(now.remarks()[i].code, without.remarks()[i].code);
    EXPECT_EQ(now.remarks()[i].text, without.remarks()[i].text);
  }
}

TEST_F(CatalogTest, HasAStateForWhatIsWrong) {
  // Damaged in the middle, cut, empty, no trace, and one that may be read.
  write_run(scratch_.path("runs/whole"), "whole");
  const std::string bytes = read_file(scratch_.path("runs/whole/000000.mcap"));
  const auto put = [&](const std::string& name, const std::string& content) {
    fs::create_directories(scratch_.path("runs/" + name));
    write_file(scratch_.path("runs/" + name + "/000000.mcap"), content);
  };
  std::string damaged = bytes;
  for (size_t i = bytes.size() / 2; i < bytes.size() / 2 + 100; ++i) damaged[i] = '\xa5';
  put("damaged", damaged);
  put("cut", bytes.substr(0, bytes.size() - 100));
  put("empty", "");
  put("other", "this is a text and no trace, however long it is");
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  const auto is_read = [](const RunCard& run) { return run.is_read; };
  const std::map<std::string, trace::RunState> expected = {
      {"whole", trace::RunState::kFinished},   {"damaged", trace::RunState::kFinished},
      {"cut", trace::RunState::kDied},         {"empty", trace::RunState::kUnreadable},
      {"other", trace::RunState::kUnreadable},
  };
  for (const auto& [name, state] : expected) {
    const auto card = wait_for(catalog, name, is_read);
    ASSERT_NE(card, nullptr) << name;
    EXPECT_EQ(card->state, state) << name << ": " << to_string(card->state);
    EXPECT_EQ(card->why.empty(), state == trace::RunState::kFinished) << name;
    const bool is_whole = name == "whole";
    if (state != trace::RunState::kUnreadable)
      EXPECT_EQ(card->count(Severity::kWarning) == 0, is_whole) << name;
    // Whoever opens it gets a page all the same.
    EXPECT_NE(catalog.page(name, 0, std::chrono::seconds(20)), nullptr) << name;
  }
}

TEST_F(CatalogTest, FollowsTheNewerOfTwoWritersAndSaysSo) {
  auto older = open_run(scratch_.path("runs/a"), "a");
  write_losses(older.get(), 0, 30);
  v1::RunDescription resumed = sample_run("a");
  resumed.set_resumed(true);
  resumed.set_resume_step(20);
  resumed.set_start_time_ns(5000);
  trace::RunWriterOptions writing;
  writing.directory = scratch_.path("runs/a");
  auto newer = trace::RunWriter::open(writing, resumed, sample_model(2), sample_registry());
  ASSERT_TRUE(newer.ok());
  write_losses(newer.value().get(), 20, 50);
  write_losses(older.get(), 30, 90);
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  const auto card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 49; });
  EXPECT_EQ(card->step, 49);
  EXPECT_EQ(card->state, trace::RunState::kLive);
  EXPECT_NE(card->why.find("two sessions write to this run"), std::string::npos) << card->why;
}

TEST_F(CatalogTest, KnowsNoRateWhereTheClockWasSetBack) {
  auto writer = open_run(scratch_.path("runs/a"), "a");
  const auto write = [&](int64_t step, int64_t time_ns) {
    writer->write("scalars", sample_record(step, 2), time_ns);
    EXPECT_TRUE(writer->flush().ok());
  };
  RunCatalog catalog({scratch_.path("runs")}, options_);
  catalog.start();
  for (const int64_t step : {0, 1, 2}) write(step, 10'000'000'000 + step * 100'000'000);
  auto card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 2; });
  EXPECT_NEAR(card->steps_per_second, 10, 1e-6);
  write(3, 1'000'000'000);
  card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 3; });
  EXPECT_TRUE(std::isnan(card->steps_per_second)) << card->steps_per_second;
  for (const int64_t step : {4, 5}) write(step, 1'000'000'000 + (step - 3) * 200'000'000);
  card = wait_for(catalog, "a", [](const RunCard& run) { return run.step == 5; });
  EXPECT_NEAR(card->steps_per_second, 5, 1e-6);
}

}  // namespace
}  // namespace tycho::analyzer
