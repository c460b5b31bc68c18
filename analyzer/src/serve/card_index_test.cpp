#include "src/serve/card_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "src/serve/run_catalog.h"
#include "src/serve/sample_runs.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using std::chrono::milliseconds;
namespace fs = std::filesystem;

class CardIndexTest : public ::testing::Test {
 protected:
  CardIndexTest() {
    options_.look_for_runs = milliseconds(50);
    options_.poll_live = milliseconds(20);
    options_.poll_ended = milliseconds(50);
  }
  std::unique_ptr<CardIndex> open(const std::string& identity = "this build") {
    auto index = CardIndex::open(scratch_.path("cache"), identity);
    EXPECT_TRUE(index.ok()) << index.status().message();
    return std::move(index).value();
  }
  RunCard sample_card() const {
    RunCard card;
    card.title = "a \"title\"\n";
    card.optimizer = "SGD";
    card.start_time_ns = 1'700'000'000'123'456'789;
    card.state = trace::RunState::kFinished;
    card.why = "why";
    card.is_read = true;
    card.step = 123456789012;
    card.steps_per_second = 0.1;
    card.has_loss = true;
    card.loss = INFINITY;
    card.lowest_loss = 1.0 / 3;
    card.last_time_ns = 17;
    card.laws = {{"edge_of_stability", Verdict::kViolated}, {"warm_up", Verdict::kNotMeasured}};
    Remark remark;
    remark.code = "loss_diverged";
    remark.severity = Severity::kAlarm;
    remark.title = "The loss diverged";
    remark.text = "It rose.";
    remark.step = 7;
    remark.value = -INFINITY;
    remark.scope = "layer:0";
    card.remarks = {remark, Remark{}};
    return card;
  }
  // The only file of the index.
  std::string file() const {
    std::string found;
    for (const auto& entry : fs::directory_iterator(scratch_.path("cache/cards"))) {
      EXPECT_EQ(found, "");
      found = entry.path().string();
    }
    return found;
  }
  // The cards of a catalog that was started with the index once all are read; how many it had read
  // when it had looked for the first time.
  std::vector<std::shared_ptr<const RunCard>> serve(const CardIndex* index, size_t* at_once) {
    CatalogOptions options = options_;
    options.index = index;
    RunCatalog catalog({scratch_.path("runs")}, options);
    catalog.start();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    RunCatalog::Cards cards;
    const auto read = [&] {
      size_t count = 0;
      for (const auto& card : cards.cards) count += card->is_read ? 1 : 0;
      return count;
    };
    uint64_t version = 1;
    bool first = true;
    do {
      version = catalog.wait_for_change(version, milliseconds(200));
      cards = catalog.cards();
      if (first && !cards.cards.empty()) {
        *at_once = read();
        first = false;
      }
    } while ((cards.cards.empty() || read() < cards.cards.size()) &&
             std::chrono::steady_clock::now() < end);
    catalog.stop();
    return cards.cards;
  }
  ScratchDirectory scratch_;
  CatalogOptions options_;
};

TEST_F(CardIndexTest, GivesBackWhatWasKept) {
  write_run(scratch_.path("run"), "a");
  const auto index = open();
  EXPECT_FALSE(index->find(scratch_.path("run")));
  const RunCard card = sample_card();
  index->keep(scratch_.path("run"), segment_times(scratch_.path("run")), card);
  for (const auto& again :
       {index->find(scratch_.path("run")), open()->find(scratch_.path("run"))}) {
    ASSERT_TRUE(again);
    EXPECT_TRUE(looks_the_same(*again, card));
    EXPECT_EQ(again->title, card.title);
    EXPECT_EQ(again->start_time_ns, card.start_time_ns);
    EXPECT_EQ(again->step, card.step);
    EXPECT_EQ(again->loss, INFINITY);
    EXPECT_EQ(again->lowest_loss, 1.0 / 3);
    EXPECT_TRUE(std::isnan(again->cost));
    EXPECT_EQ(again->laws, card.laws);
    ASSERT_EQ(again->remarks.size(), 2U);
    EXPECT_EQ(again->remarks[0].text, "It rose.");
    EXPECT_EQ(again->remarks[0].value, -INFINITY);
    EXPECT_EQ(again->remarks[0].severity, Severity::kAlarm);
    EXPECT_EQ(again->count(Severity::kWarning), 1);
  }
  EXPECT_FALSE(index->find(scratch_.path("other")));
}

TEST_F(CardIndexTest, AnotherBuildAndChangedSegmentsAreNotFound) {
  const std::string run = scratch_.path("run");
  write_run(run, "a");
  const auto keep = [&] { open()->keep(run, segment_times(run), sample_card()); };
  keep();
  EXPECT_FALSE(open("another build")->find(run));
  EXPECT_FALSE(CardIndex::open(scratch_.path("cache"), "").ok());
  const std::string segment = run + "/000000.mcap";
  const auto changed = fs::last_write_time(segment);
  fs::last_write_time(segment, changed + std::chrono::microseconds(1));
  EXPECT_FALSE(open()->find(run));
  fs::last_write_time(segment, changed);
  EXPECT_TRUE(open()->find(run));
  const std::string bytes = read_file(segment);
  write_file(segment, bytes + "x");
  fs::last_write_time(segment, changed);
  EXPECT_FALSE(open()->find(run));
  write_file(segment, bytes);
  fs::last_write_time(segment, changed);
  EXPECT_TRUE(open()->find(run));
  write_file(run + "/000001.mcap", bytes);
  EXPECT_FALSE(open()->find(run));
  fs::remove(run + "/000001.mcap");
  // A run that was moved away, and another in its place.
  fs::rename(run, scratch_.path("moved"));
  EXPECT_FALSE(open()->find(run));
  EXPECT_FALSE(open()->find(scratch_.path("moved")));
}

TEST_F(CardIndexTest, NothingIsKeptOfARunThatChangedOrHasNotEnded) {
  const std::string run = scratch_.path("run");
  write_run(run, "a");
  const auto before = segment_times(run);
  write_file(run + "/000001.mcap", "more");
  open()->keep(run, before, sample_card());
  EXPECT_EQ(file(), "");
  RunCard live = sample_card();
  live.state = trace::RunState::kLive;
  open()->keep(run, segment_times(run), live);
  EXPECT_EQ(file(), "");
  // An index is not written into a run.
  auto inside = CardIndex::open(run + "/cache", "this build");
  ASSERT_TRUE(inside.ok());
  inside.value()->keep(run, segment_times(run), sample_card());
  EXPECT_TRUE(fs::is_empty(run + "/cache/cards"));
}

TEST_F(CardIndexTest, DamageIsNeverShown) {
  const std::string run = scratch_.path("run");
  write_run(run, "a");
  const auto index = open();
  index->keep(run, segment_times(run), sample_card());
  const std::string bytes = read_file(file());
  for (size_t i = 0; i < bytes.size(); i += 3) {
    std::string flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ (1 << (i % 7)));
    write_file(file(), flipped);
    EXPECT_FALSE(index->find(run)) << "byte " << i;
    write_file(file(), bytes.substr(0, i));
    EXPECT_FALSE(index->find(run)) << "cut at " << i;
  }
  write_file(file(), bytes);
  EXPECT_TRUE(index->find(run));
}

TEST_F(CardIndexTest, ASecondStartNeedNotReadWhatHasEnded) {
  for (int i = 0; i < 5; ++i)
    write_run(scratch_.path("runs/" + std::to_string(i)), std::to_string(i));
  auto writer = open_run(scratch_.path("runs/live"), "live");
  write_losses(writer.get(), 0, 20);
  const auto index = open();
  size_t at_once = 9;
  const auto first = serve(index.get(), &at_once);
  ASSERT_EQ(first.size(), 6U);
  const auto second = serve(index.get(), &at_once);
  ASSERT_EQ(second.size(), 6U);
  EXPECT_GE(at_once, 5U);  // The live one is read a moment later.
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(second[i]->is_read);
    EXPECT_EQ(card_json(*second[i]), card_json(*first[i]));
  }
  // Whoever opens one of them has it read.
  {
    CatalogOptions options = options_;
    options.index = index.get();
    RunCatalog catalog({scratch_.path("runs")}, options);
    catalog.start();
    while (catalog.card("0") == nullptr) catalog.wait_for_change(0, milliseconds(10));
    EXPECT_TRUE(catalog.card("0")->is_read);
    const auto page = catalog.page("0", 0, std::chrono::seconds(20));
    ASSERT_NE(page, nullptr);
    EXPECT_NE(page->html.find("20 of them observed"), std::string::npos);
  }
  // One goes on, another was damaged: both are read again.
  v1::RunDescription description = sample_run("2");
  description.set_resumed(true);
  description.set_resume_step(20);
  trace::RunWriterOptions options;
  options.directory = scratch_.path("runs/2");
  auto resumed = trace::RunWriter::open(options, description, sample_model(2), sample_registry());
  ASSERT_TRUE(resumed.ok());
  write_losses(resumed.value().get(), 20, 40);
  ASSERT_TRUE(resumed.value()->close().ok());
  const std::string segment = scratch_.path("runs/3/000000.mcap");
  write_file(segment, read_file(segment).substr(0, fs::file_size(segment) / 2));
  const auto third = serve(index.get(), &at_once);
  ASSERT_EQ(third.size(), 6U);
  EXPECT_EQ(third[1]->step, 19);
  EXPECT_EQ(third[2]->step, 39);
  EXPECT_EQ(third[3]->state, trace::RunState::kDied);
}

TEST_F(CardIndexTest, AnIndexThatCannotBeWrittenChangesNothing) {
  write_run(scratch_.path("runs/a"), "a");
  const auto index = open();
  fs::remove_all(scratch_.path("cache"));
  write_file(scratch_.path("cache"), "");
  size_t at_once = 0;
  const auto cards = serve(index.get(), &at_once);
  ASSERT_EQ(cards.size(), 1U);
  EXPECT_TRUE(cards[0]->is_read);
  EXPECT_FALSE(CardIndex::open(scratch_.path("cache"), "this build").ok());
}

TEST_F(CardIndexTest, KnowsWhatLiesInADirectory) {
  fs::create_directories(scratch_.path("a/b"));
  fs::create_directory_symlink(scratch_.path("a"), scratch_.path("link"));
  EXPECT_TRUE(lies_in(scratch_.path("a"), scratch_.path("a")));
  EXPECT_TRUE(lies_in(scratch_.path("a/b/new/one"), scratch_.path("a")));
  EXPECT_TRUE(lies_in(scratch_.path("link/b"), scratch_.path("a")));
  EXPECT_TRUE(lies_in(scratch_.path("a/x"), scratch_.path("link")));
  EXPECT_TRUE(lies_in(scratch_.path("a"), "/"));
  EXPECT_FALSE(lies_in(scratch_.path("ab"), scratch_.path("a")));
  EXPECT_FALSE(lies_in(scratch_.path("a/../b"), scratch_.path("a")));
  EXPECT_FALSE(lies_in(scratch_.path("a"), scratch_.path("a/b")));
}

TEST_F(CardIndexTest, WhatNobodyAskedForIsRemoved) {
  write_run(scratch_.path("run"), "a");
  open()->keep(scratch_.path("run"), segment_times(scratch_.path("run")), sample_card());
  const auto day = std::chrono::hours(24);
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(file(), now - 80 * day);
  EXPECT_TRUE(open()->find(scratch_.path("run")));
  EXPECT_GT(fs::last_write_time(file()), now - day);
  fs::last_write_time(file(), now - 91 * day);
  EXPECT_FALSE(open()->find(scratch_.path("run")));
  EXPECT_EQ(file(), "");
}

// Debian's compilers give every program one.
TEST(ProgramIdentityTest, IsTheBuildIdsOfWhatIsLoaded) {
  const std::string identity = program_identity();
  EXPECT_THAT(identity.substr(0, identity.find(' ')), ::testing::MatchesRegex("[0-9a-f]+"));
  EXPECT_GT(std::count(identity.begin(), identity.end(), ' '), 1);
  EXPECT_EQ(program_identity(), identity);
}

}  // namespace
}  // namespace tycho::analyzer
