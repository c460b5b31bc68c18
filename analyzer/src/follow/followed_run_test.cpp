#include "src/follow/followed_run.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <deque>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "src/follow/text_columns.h"
#include "src/follow/watch_lines.h"
#include "src/follow/watch_screen.h"
#include "src/report/json_parts.h"
#include "tests/support/trace_samples.h"
#include "tycho/analyzer/finding_message.h"
#include "tycho/trace/file_system.h"
#include "tycho/trace/run_writer.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using trace::RunState;

constexpr uint64_t kAll = uint64_t{1} << 40;

// Whatever laws read, at every scope, of a network whose loss falls. Random numbers make verdicts
// that change.
class RunSource {
 public:
  explicit RunSource(uint32_t seed, int layers = 3) : random_(seed), layers_(layers) {
    std::set<std::string> names{"loss", "dead_fraction"};
    for (const auto& law : make_laws())
      for (const std::string& name : law->description().statistics) names.insert(name);
    for (const std::string& name : names) {
      auto* statistic = registry_.add_statistic();
      statistic->set_id(static_cast<uint32_t>(registry_.statistic_size()) - 1);
      statistic->set_name(name);
      for (const v1::Scope scope : {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER})
        statistic->add_scope(scope);
    }
  }

  const v1::StatisticRegistry& registry() const { return registry_; }

  std::unique_ptr<trace::RunWriter> open(const std::string& directory, uint64_t segment_bytes) {
    trace::RunWriterOptions options;
    options.directory = directory;
    options.chunk_bytes = 8000;
    options.segment_bytes = segment_bytes;
    options.sync_interval = std::chrono::milliseconds(-1);
    auto writer =
        trace::RunWriter::open(options, sample_run("a"), sample_model(layers_), registry_);
    EXPECT_TRUE(writer.ok()) << writer.status().message();
    return std::move(writer).value();
  }

  /// `judge`, where there is one, hears of it too, as in a trainer.
  void write(trace::RunWriter* writer, int64_t step, LiveJudge* judge = nullptr) {
    std::lognormal_distribution<double> value(0, 0.3);
    v1::Record record;
    record.set_step(step);
    for (const auto& statistic : registry_.statistic()) {
      for (const v1::Scope scope : {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER}) {
        auto* column = record.add_column();
        column->set_statistic(statistic.id());
        column->set_scope(scope);
        const int count = scope == v1::SCOPE_RUN ? 1 : layers_;
        for (int i = 0; i < count; ++i) {
          if (scope != v1::SCOPE_RUN) column->add_entity(static_cast<uint32_t>(i));
          const double level = statistic.name() == "loss" ? std::exp(-0.01 * double(step)) : 1;
          column->add_value(level * value(random_));
        }
      }
    }
    writer->write("everything", record, 1'000'000'000 + step * 50'000'000);
    if (judge == nullptr) return;
    (void)judge->on_record("everything", record, 1'000'000'000 + step * 50'000'000);
    judge->finish_step();
  }

 private:
  std::mt19937 random_;
  int layers_;
  v1::StatisticRegistry registry_;
};

std::string findings_text(const std::vector<Finding>& findings) {
  nlohmann::json all = nlohmann::json::array();
  for (const Finding& finding : findings) all.push_back(finding_json(finding));
  return all.dump();
}

void follow_to_the_end(FollowedRun* run, uint64_t at_once) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (!has_ended(run->state()) && std::chrono::steady_clock::now() < end) {
    (void)run->poll(at_once);
    std::this_thread::yield();
  }
  while (run->poll(at_once)) {
  }
  run->judge();
}

TEST(FollowedRun, EndsWithTheReportOfTheTrace) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    ScratchDirectory scratch;
    const std::string directory = scratch.path("run");
    std::thread thread([&] {
      RunSource source(seed);
      auto writer = source.open(directory, 200000);
      for (int64_t step = 0; step < 300; ++step) source.write(writer.get(), step);
      EXPECT_TRUE(writer->close().ok());
    });
    FollowedRun run(directory);
    follow_to_the_end(&run, 20000);
    thread.join();
    const auto fresh = read_report(directory, nullptr);
    ASSERT_TRUE(fresh.ok());
    EXPECT_GT(fresh.value().segments.size(), 1u);
    EXPECT_EQ(json_report(run.report()), json_report(fresh.value()));
    EXPECT_EQ(html_report(run.report()), html_report(fresh.value()));
  }
}

TEST(FollowedRun, AtACutKnowsWhatAFreshReadOfTheSameBytesDoes) {
  ScratchDirectory scratch;
  RunSource source(7);
  auto writer = source.open(scratch.path("whole"), uint64_t{1} << 30);
  for (int64_t step = 0; step < 200; ++step) source.write(writer.get(), step);
  ASSERT_TRUE(writer->close().ok());
  const std::string bytes = read_file(scratch.path("whole/000000.mcap"));
  std::filesystem::create_directories(scratch.path("run"));
  // A file that is locked: its writer lives.
  auto file = trace::FileSystem::system()->create(scratch.path("run/000000.mcap"));
  ASSERT_TRUE(file.ok());
  FollowedRun run(scratch.path("run"));
  std::mt19937 random(3);
  size_t at = 0;
  for (int i = 0; i < 60 && at < bytes.size(); ++i) {
    const size_t size = std::min<size_t>(bytes.size() - at, 1 + random() % (bytes.size() / 30));
    ASSERT_TRUE(file.value()->append(std::string_view(bytes).substr(at, size)).ok());
    at += size;
    while (run.poll(5000)) {
    }
    run.judge();
    if (run.state() == RunState::kWaiting) continue;
    Engine fresh;
    auto reader = trace::RunReader::open(scratch.path("run"));
    ASSERT_TRUE(reader.ok());
    ASSERT_TRUE(reader.value()->read(fresh).ok());
    if (has_ended(run.state())) fresh.finish();
    EXPECT_EQ(run.report().frames, fresh.frames()) << at;
    EXPECT_EQ(findings_text(run.report().findings), findings_text(fresh.findings())) << at;
  }
}

TEST(FollowedRun, SaysSinceWhenAVerdictIsKnownAsTheTrainerSaidIt) {
  ScratchDirectory scratch;
  const std::string directory = scratch.path("run");
  RunSource source(4);
  auto writer = source.open(directory, 200000);
  std::map<std::pair<std::string, std::string>, std::pair<Verdict, int64_t>> said;
  LiveJudge judge([&](const LiveFinding& finding) {
    writer->write(to_message(finding), 1'000'000'000 + finding.step * 50'000'000);
    if (finding.kind == LiveFinding::Kind::kVerdict)
      said[{finding.law, finding.scope}] = {finding.verdict, finding.step};
  });
  (void)judge.on_segment({}, sample_run("a"), sample_model(3), source.registry());
  for (int64_t step = 0; step < 300; ++step) source.write(writer.get(), step, &judge);
  FollowedRun run(directory);
  judge.finish();
  EXPECT_TRUE(writer->close().ok());
  follow_to_the_end(&run, 20000);
  const auto fresh = read_report(directory, nullptr);
  ASSERT_TRUE(fresh.ok());
  EXPECT_EQ(json_report(run.report()), json_report(fresh.value()));
  size_t known = 0;
  std::set<int64_t> steps;
  for (const Finding& finding : fresh.value().findings) {
    const auto since = fresh.value().verdict_times.since(finding);
    const auto expected = said.find({finding.law, finding.scope});
    ASSERT_EQ(since.has_value(), expected != said.end()) << finding.law << " " << finding.scope;
    if (!since) continue;
    EXPECT_EQ(finding.verdict, expected->second.first);
    EXPECT_EQ(*since, expected->second.second) << finding.law << " " << finding.scope;
    steps.insert(*since);
    ++known;
  }
  EXPECT_GT(known, 20u);
  EXPECT_GT(steps.size(), 3u);
}

TEST(FollowedRun, TellsHowVerdictsChanged) {
  ScratchDirectory scratch;
  RunSource source(5);
  auto writer = source.open(scratch.path("run"), uint64_t{1} << 30);
  for (int64_t step = 0; step < 300; ++step) source.write(writer.get(), step);
  ASSERT_TRUE(writer->close().ok());
  FollowedRun run(scratch.path("run"));
  follow_to_the_end(&run, kAll);
  const auto changes = run.take_changes();
  ASSERT_FALSE(changes.empty());
  EXPECT_TRUE(run.take_changes().empty());
  // Replayed, they lead to the verdicts of the report.
  std::map<std::pair<std::string, std::string>, Verdict> known;
  int64_t step = -1;
  for (const VerdictChange& change : changes) {
    EXPECT_GE(change.step, step);
    step = change.step;
    for (const std::string& scope : change.scopes) {
      const auto entry = known.find({change.law, scope});
      if (entry != known.end()) EXPECT_EQ(change.from, entry->second) << change.law << scope;
      known[{change.law, scope}] = change.to;
    }
  }
  for (const Finding& finding : run.report().findings) {
    const auto entry = known.find({finding.law, finding.scope});
    if (finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated)
      ASSERT_NE(entry, known.end()) << finding.law;
    if (entry != known.end()) EXPECT_EQ(entry->second, finding.verdict) << finding.law;
  }
}

TEST(FollowedRun, KnowsTheRateByTheTrainersClock) {
  ScratchDirectory scratch;
  RunSource source(1);
  auto writer = source.open(scratch.path("run"), uint64_t{1} << 30);
  for (int64_t step = 0; step < 20; ++step) source.write(writer.get(), step);
  ASSERT_TRUE(writer->flush().ok());
  FollowedRun run(scratch.path("run"));
  EXPECT_TRUE(std::isnan(run.steps_per_second()));
  (void)run.poll(kAll);
  run.judge();
  EXPECT_NEAR(run.steps_per_second(), 20, 1e-6);
  EXPECT_EQ(run.last_step(), 19);
  EXPECT_EQ(run.state(), RunState::kLive);
  // The last step is complete when the next has begun.
  EXPECT_EQ(run.report().last_step, 18);
}

// A run whose loss is not finite from step 150 on.
void write_broken_run(const std::string& directory, int layers) {
  RunSource source(2, layers);
  auto writer = source.open(directory, uint64_t{1} << 30);
  for (int64_t step = 0; step < 150; ++step) source.write(writer.get(), step);
  for (int64_t step = 150; step < 160; ++step) {
    v1::Record record;
    record.set_step(step);
    auto* column = record.add_column();
    // "loss" is where its name stands in the order of all.
    for (const auto& statistic : source.registry().statistic())
      if (statistic.name() == "loss") column->set_statistic(statistic.id());
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(std::nan(""));
    writer->write("loss", record, 1'000'000'000 + step * 50'000'000);
  }
  EXPECT_TRUE(writer->close().ok());
}

class WatchedRun : public ::testing::Test {
 protected:
  std::unique_ptr<FollowedRun> broken(int layers) {
    write_broken_run(scratch_.path("run"), layers);
    auto run = std::make_unique<FollowedRun>(scratch_.path("run"));
    follow_to_the_end(run.get(), kAll);
    return run;
  }
  ScratchDirectory scratch_;
};

TEST_F(WatchedRun, IsNeverWiderOrHigherThanTheScreen) {
  const auto run = broken(40);
  std::deque<VerdictChange> recent;
  for (const VerdictChange& change : run->take_changes()) recent.push_back(change);
  for (const size_t width : {20u, 39u, 80u, 81u, 200u}) {
    for (const size_t height : {1u, 5u, 24u, 60u}) {
      ScreenOptions options;
      options.width = width;
      options.height = height;
      const auto lines = watch_screen(*run, recent, 0, options);
      EXPECT_LE(lines.size(), height);
      for (const std::string& line : lines) {
        EXPECT_LE(columns(line), width) << line;
        EXPECT_EQ(line.find('\x1b'), std::string::npos) << line;
      }
    }
  }
}

TEST_F(WatchedRun, ShowsStateAlarmsLawsLayersAndChanges) {
  const auto run = broken(4);
  std::deque<VerdictChange> recent;
  for (const VerdictChange& change : run->take_changes()) recent.push_back(change);
  ScreenOptions options;
  options.height = 40;
  std::string text;
  for (const std::string& line : watch_screen(*run, recent, 0, options)) text += line + "\n";
  EXPECT_EQ(text.find("sample  4 layers, 4 parameters"), 0u) << text;
  EXPECT_NE(text.find("finished  step 159  20 steps/s  loss nan"), std::string::npos) << text;
  EXPECT_NE(text.find("ALARM (step 150): "), std::string::npos) << text;
  EXPECT_NE(text.find("\nLaws: "), std::string::npos) << text;
  EXPECT_NE(text.find("layers.3 "), std::string::npos) << text;
  EXPECT_NE(text.find("Changes of verdicts"), std::string::npos) << text;
  EXPECT_NE(text.find("\u2588"), std::string::npos) << text;
  // The alarm stands above the laws.
  EXPECT_LT(text.find("ALARM"), text.find("Laws: "));
}

TEST_F(WatchedRun, IsPlainAsciiWhereTheTerminalIs) {
  const auto run = broken(3);
  ScreenOptions options;
  options.unicode = false;
  for (const std::string& line : watch_screen(*run, {}, 0, options))
    for (const char c : line) EXPECT_TRUE(c >= ' ' && c < 0x7f) << line;
}

TEST_F(WatchedRun, IsColouredWhereThatIsWanted) {
  const auto run = broken(3);
  ScreenOptions options;
  options.colour = true;
  std::string text;
  for (const std::string& line : watch_screen(*run, {}, 0, options)) text += line + "\n";
  EXPECT_NE(text.find("\x1b[1;7;31mALARM"), std::string::npos);
}

TEST_F(WatchedRun, SaysEachChangeOnce) {
  const auto run = broken(3);
  WatchLines lines;
  const auto changes = run->take_changes();
  const auto first = lines.look(*run, changes);
  ASSERT_GE(first.size(), changes.size() + 2);
  EXPECT_NE(first.back().find("the run is finished"), std::string::npos) << first.back();
  EXPECT_TRUE(std::any_of(first.begin(), first.end(), [](const std::string& line) {
    return line.find("[loss_not_finite]") != std::string::npos;
  }));
  for (const std::string& line : first) EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_TRUE(lines.look(*run, {}).empty());
}

TEST(WatchScreen, ShowsRowsOfAllParts) {
  EXPECT_EQ(rows_to_show(3, 10), (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(rows_to_show(100, 3), (std::vector<size_t>{0, 49, 99}));
  EXPECT_EQ(rows_to_show(100, 1), (std::vector<size_t>{0}));
  EXPECT_TRUE(rows_to_show(100, 0).empty());
}

TEST(TextColumns, CountsAndCutsByColumns) {
  EXPECT_EQ(columns("abc"), 3u);
  EXPECT_EQ(columns("\u5c64\u5c64"), 4u);
  EXPECT_EQ(columns("e\u0301"), 1u);
  EXPECT_EQ(cut("abcdefghij", 10), "abcdefghij");
  EXPECT_EQ(cut("abcdefghijk", 10), "abcdefg...");
  EXPECT_EQ(cut("\u5c64\u5c64\u5c64\u5c64\u5c64", 8), "\u5c64\u5c64...");
  EXPECT_EQ(fit("ab", 4), "ab  ");
}

TEST(TextColumns, DrawsASparkline) {
  EXPECT_EQ(sparkline({0, 1, 2, 3, 4, 5, 6, 7}, 8, false), "_.:-=+*#");
  EXPECT_EQ(sparkline({0, 7}, 4, false), "  _#");
  EXPECT_EQ(sparkline({1, __builtin_nan(""), 1}, 3, false), " ==");
  EXPECT_EQ(sparkline({}, 3, false), "   ");
  // A factor of a thousand is shown by its logarithm.
  EXPECT_EQ(sparkline({1, 10, 100, 1000}, 4, false), "_:+#");
  EXPECT_EQ(columns(sparkline({1, 2, 3}, 5, true)), 5u);
}

TEST(WatchScreen, SaysSpansAndRatesInWords) {
  EXPECT_EQ(span_text(0.44), "0.4 s");
  EXPECT_EQ(span_text(150), "2 min");
  EXPECT_EQ(span_text(7200), "2 h");
  EXPECT_EQ(span_text(3 * 86400), "3 d");
  EXPECT_EQ(rate_text(12.34), "12.3 steps/s");
  EXPECT_EQ(rate_text(0.25), "4 s/step");
  EXPECT_EQ(rate_text(kUnknown), "");
}

}  // namespace
}  // namespace tycho::analyzer
