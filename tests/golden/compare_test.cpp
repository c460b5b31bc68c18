#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "src/compare/comparison.h"
#include "tests/golden/golden_run.h"
#include "tests/support/sweep_traces.h"

namespace tycho::testing {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class CompareTest : public ::testing::Test {
 protected:
  Outcome run(const std::string& arguments) {
    const std::string out = scratch_.path("out");
    const std::string err = scratch_.path("err");
    const std::string line =
        std::string(TYCHO_COMMAND) + " compare " + arguments + " >'" + out + "' 2>'" + err + "'";
    const int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(out), read_file(err)};
  }

  /// Writes a run; its path, with a blank before it.
  std::string make(const SweepTrace& sweep) {
    const std::string path = scratch_.path(sweep.name);
    if (!std::filesystem::exists(path)) write_sweep_trace(path, sweep);
    return " " + path;
  }

  /// Four widths with two seeds each.
  std::string widths(bool stable) {
    std::string paths;
    for (const int width : {128, 256, 512, 1024}) {
      for (uint32_t seed = 0; seed < 2; ++seed) {
        SweepTrace sweep;
        sweep.width = width;
        sweep.seed = seed;
        sweep.stable = stable;
        sweep.steps = 200;
        sweep.name =
            (stable ? "mup-w" : "standard-w") + std::to_string(width) + "-s" + std::to_string(seed);
        paths += make(sweep);
      }
    }
    return paths;
  }

  std::string batches() {
    std::string paths;
    for (const int batch : {16, 64, 256, 1024}) {
      for (uint32_t seed = 0; seed < 2; ++seed) {
        SweepTrace sweep;
        sweep.batch_size = batch;
        sweep.seed = seed;
        sweep.steps = 3000;
        sweep.with_features = false;
        sweep.name = "b" + std::to_string(batch) + "-s" + std::to_string(seed);
        paths += make(sweep);
      }
    }
    return paths;
  }

  std::string segment(const std::string& directory) {
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      if (entry.path().extension() == ".mcap") return entry.path().string();
    }
    return "";
  }

  nlohmann::json json(const std::string& arguments) {
    return nlohmann::json::parse(run("--format json" + arguments).out, nullptr, false);
  }

  static std::string verdict(const nlohmann::json& comparison, const std::string& law) {
    for (const auto& finding : comparison.at("laws")) {
      if (finding.at("law") == law && finding.at("scope") == "runs") return finding.at("verdict");
    }
    return "";
  }

  ScratchDirectory scratch_;
};

TEST_F(CompareTest, AWidthSweepIsRecognisedAndJudged) {
  const Outcome text = run(widths(true));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.err, IsEmpty());
  EXPECT_THAT(text.out, HasSubstr("width 128, 256, 512 and 1024, 2 runs each"));
  EXPECT_THAT(text.out, HasSubstr("Tune the learning rate at width 128"));
  const auto comparison = json(widths(true));
  EXPECT_EQ(verdict(comparison, "coordinate_check"), "HOLDS");
  EXPECT_EQ(verdict(comparison, "critical_batch"), "NOT_APPLICABLE");
  EXPECT_EQ(comparison.at("runs").size(), 8u);
  EXPECT_EQ(comparison.at("runs")[7].at("width"), 1024);
}

TEST_F(CompareTest, ParametrizationsAreToldApartByTheirTag) {
  const auto comparison = json(widths(true) + widths(false));
  std::set<std::string> verdicts;
  for (const auto& finding : comparison.at("laws")) {
    if (finding.at("law") == "coordinate_check" && finding.at("scope") == "runs" &&
        finding.at("statistic") != "output_change") {
      verdicts.insert(finding.at("verdict").get<std::string>());
    }
  }
  EXPECT_THAT(verdicts, Contains("HOLDS"));
  EXPECT_THAT(verdicts, Contains("VIOLATED"));
  EXPECT_EQ(run("--fail-on violated" + widths(false)).exit_code, 4);
  EXPECT_EQ(run("--fail-on violated" + widths(true)).exit_code, 0);
}

TEST_F(CompareTest, ABatchSweepFindsTheCriticalBatchSize) {
  const auto comparison = json(batches());
  EXPECT_EQ(verdict(comparison, "critical_batch"), "HOLDS");
  for (const auto& finding : comparison.at("laws")) {
    if (finding.at("law") != "critical_batch") continue;
    EXPECT_NEAR(finding.at("measured").get<double>() / 200, 1, 0.1);
    EXPECT_EQ(finding.at("points").size(), 8u);
  }
  // Over examples all runs have a common end: that of the smallest batch.
  EXPECT_NEAR(json(" --by examples" + batches()).at("common_end").get<double>(), 16 * 3000,
              0.03 * 16 * 3000);
  EXPECT_EQ(json(" --by time" + batches()).at("by"), "time");
}

TEST_F(CompareTest, JsonHasTheFieldsOfTheContract) {
  const auto comparison = json(widths(true));
  const std::set<std::string> expected = {"law",       "line",   "scope",   "verdict", "measured",
                                          "predicted", "ci_low", "ci_high", "unit",    "window",
                                          "gate",      "advice", "source",  "sweep",   "statistic",
                                          "by_step",   "points", "curve"};
  for (const auto& law : comparison.at("laws")) {
    std::set<std::string> fields;
    for (const auto& [name, value] : law.items()) fields.insert(name);
    EXPECT_EQ(fields, expected);
  }
}

TEST_F(CompareTest, WrongUsageIsTwo) {
  const std::string one = make({});
  for (const std::string& arguments :
       {std::string(), one, "--by colour" + one + one, "--format pdf" + one + one,
        "--fail-on everything" + one + one}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_FALSE(outcome.err.empty() && outcome.out.empty()) << arguments;
  }
}

TEST_F(CompareTest, WhatIsNoTraceIsLeftOutAndSaid) {
  std::filesystem::create_directory(scratch_.path("bare"));
  write_file(scratch_.path("text.mcap"), "this is no trace, though it is long enough to be one\n");
  const std::string bad = " " + scratch_.path("bare") + " " + scratch_.path("missing") + " " +
                          scratch_.path("text.mcap");
  const Outcome outcome = run(widths(true) + bad);
  EXPECT_EQ(outcome.exit_code, 3);
  for (const char* name : {"bare", "missing", "text.mcap"}) {
    EXPECT_THAT(outcome.out, HasSubstr(name));
    EXPECT_THAT(outcome.err, HasSubstr(name));
  }
  EXPECT_THAT(outcome.out, HasSubstr("Comparison of 8 runs"));
  const Outcome nothing = run(bad);
  EXPECT_EQ(nothing.exit_code, 1);
  EXPECT_THAT(nothing.err, StartsWith("tycho: none of the runs can be read"));
}

TEST_F(CompareTest, OneRunLeftIsSaidToBeAlone) {
  SweepTrace sweep;
  sweep.name = "alone";
  const std::string path = make(sweep);
  const Outcome twice = run(path + path);
  EXPECT_EQ(twice.exit_code, 3);
  EXPECT_THAT(twice.out, HasSubstr("it is the same run as"));
  EXPECT_THAT(twice.out, HasSubstr("Only one run could be used"));
}

TEST_F(CompareTest, DamagedAndUnfinishedRunsAreComparedAsFarAsTheyGo) {
  SweepTrace killed;
  killed.name = "killed";
  killed.seal = false;
  killed.seed = 1;
  SweepTrace cut;
  cut.name = "cut";
  cut.seed = 2;
  SweepTrace whole;
  whole.name = "whole";
  const std::string paths = make(killed) + make(cut) + make(whole);
  const std::string file = segment(scratch_.path("cut"));
  std::filesystem::resize_file(file, std::filesystem::file_size(file) * 2 / 3);
  const Outcome outcome = run(paths);
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(outcome.out, HasSubstr("killed is not finished"));
  EXPECT_THAT(outcome.out, HasSubstr("cut is damaged"));
  EXPECT_THAT(outcome.err, HasSubstr("cannot be read"));
  EXPECT_THAT(outcome.out, HasSubstr("Comparison of 3 runs in 1 group,"));
}

TEST_F(CompareTest, OtherStatisticsAndLayersAreComparedAmongThoseThatHaveThem) {
  SweepTrace bare;
  bare.name = "bare-w128-s7";
  bare.seed = 7;
  bare.with_features = false;
  bare.extra_layer = "extra";
  const Outcome outcome = run(widths(true) + make(bare));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("statistics are only in some runs"));
  EXPECT_THAT(outcome.out, HasSubstr("feature_change"));
  EXPECT_THAT(outcome.out, HasSubstr("1 layers are only in some runs"));
}

TEST_F(CompareTest, ADivergedRunIsSaidAndDoesNotJudge) {
  SweepTrace diverged;
  diverged.batch_size = 16;
  diverged.seed = 9;
  diverged.steps = 500;
  diverged.first_bad_step = 100;
  diverged.with_features = false;
  diverged.name = "b16-s9";
  const Outcome outcome = run(batches() + make(diverged));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("the loss is not finite near step 10"));
}

TEST_F(CompareTest, RunsOfNothingAndOfNamesThatWouldRunAreHandled) {
  write_golden_run(scratch_.path("golden"));
  write_list_run(scratch_.path("list"));
  write_curvature_run(scratch_.path("curved"));
  write_long_run(scratch_.path("empty"), 0);
  const std::string paths = " " + scratch_.path("golden") + " " + scratch_.path("list") + " " +
                            scratch_.path("curved") + " " + scratch_.path("empty");
  const Outcome outcome = run("--html " + scratch_.path("page.html") + paths);
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(outcome.out, HasSubstr("it has no observed step"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));
  const std::string page = read_file(scratch_.path("page.html"));
  EXPECT_THAT(page, StartsWith("<!doctype html>"));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  size_t closed = 0;
  for (size_t at = page.find("</script"); at != std::string::npos;
       at = page.find("</script", at + 1)) {
    ++closed;
  }
  EXPECT_EQ(closed, 2u);
}

TEST_F(CompareTest, PagesNeedNoNetworkAndShowTheLaws) {
  const Outcome outcome = run("--html " + scratch_.path("p.html") + " --json " +
                              scratch_.path("p.json") + widths(false) + batches());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, StartsWith("Comparison of"));
  const std::string page = read_file(scratch_.path("p.html"));
  for (const char* loader : {"<link", "<img", "<iframe", "<script src", "@import", "url(",
                             "href=\"http", "fetch(", "sourceMappingURL"}) {
    EXPECT_THAT(page, Not(HasSubstr(loader)));
  }
  for (const char* part : {"What to do", "Laws over these runs", "What differs", "Runs overlaid",
                           "What was left out", "class=\"picture\"", "examples to it"}) {
    EXPECT_THAT(page, HasSubstr(part));
  }
  EXPECT_LT(page.find("<h2>What to do"), page.find("<h2>Laws over these runs"));
  EXPECT_LT(page.find("<h2>Laws over these runs"), page.find("<h2>What differs"));
  EXPECT_LT(page.find("<h2>What differs"), page.find("<h2>Runs overlaid"));
  EXPECT_TRUE(nlohmann::json::accept(read_file(scratch_.path("p.json"))));
}

TEST_F(CompareTest, AnIgnoredSettingDoesNotSplitASweep) {
  const auto split = json(widths(true) + widths(false));
  EXPECT_EQ(split.at("sweeps").size(), 2u);
  const auto joined = json(" --ignore 'tag parametrization' --ignore 'name (digits left out)'" +
                           widths(true) + widths(false));
  ASSERT_EQ(joined.at("sweeps").size(), 1u);
  EXPECT_EQ(joined.at("sweeps")[0].at("levels")[0].at("runs").size(), 4u);
}

TEST_F(CompareTest, OutputThatCannotBeWrittenIsAnError) {
  const Outcome outcome = run("--html " + scratch_.path("no/such/p.html") + widths(true));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("cannot write"));
}

size_t kept(const analyzer::RunDigest& digest) {
  size_t cells = 0;
  for (const auto& [name, bins] : digest.run_series) cells += bins.size();
  for (const auto& [name, bins] : digest.layer_series) {
    for (const auto& bin : bins) cells += bin.cell.size();
  }
  return cells;
}

TEST_F(CompareTest, WhatIsKeptOfARunDoesNotGrowWithItsLength) {
  SweepTrace sweep;
  sweep.steps = 2000;
  sweep.name = "short";
  make(sweep);
  sweep.steps = 32000;
  sweep.name = "long";
  make(sweep);
  const auto brief = analyzer::digest_run(scratch_.path("short"), {});
  const auto lengthy = analyzer::digest_run(scratch_.path("long"), {});
  ASSERT_TRUE(brief.ok() && lengthy.ok());
  EXPECT_EQ(lengthy.value().frames, 32000u);
  // Four octaves more: a fixed number of bins each.
  EXPECT_LT(kept(lengthy.value()), 2 * kept(brief.value()));
  // The grid has an end however long a run is.
  EXPECT_LT(analyzer::kFineGrid.bin(std::numeric_limits<int64_t>::max()), 1400u);
  EXPECT_LT(analyzer::kCoarseGrid.bin(std::numeric_limits<int64_t>::max()), 520u);
}

TEST_F(CompareTest, ADigestKeepsMeansPositionsAndFirstValues) {
  SweepTrace sweep;
  sweep.steps = 5000;
  sweep.name = "run";
  make(sweep);
  const auto digest = analyzer::digest_run(scratch_.path("run"), {});
  ASSERT_TRUE(digest.ok());
  const auto* loss = digest.value().series("loss");
  ASSERT_NE(loss, nullptr);
  uint64_t count = 0;
  for (const auto& bin : *loss) {
    count += bin.count;
    EXPECT_LE(bin.min, bin.mean);
    EXPECT_LE(bin.mean, bin.max);
    // 64 examples and a millisecond a step, from the first message on.
    EXPECT_NEAR(bin.position.examples, 64 * (bin.position.step + 1), 1e-6);
    EXPECT_NEAR(bin.position.seconds, 1e-3 * bin.position.step, 1e-6);
  }
  EXPECT_EQ(count, 5000u);
  const auto* change = digest.value().layers("feature_change");
  ASSERT_NE(change, nullptr);
  for (const auto& bin : *change) {
    EXPECT_TRUE(bin.first_step < 10 || bin.first_step % 10 == 0);
    EXPECT_GT(bin.cell[1].first, 0);
  }
  const auto* passed = digest.value().layers("propagated_change");
  ASSERT_NE(passed, nullptr);
  EXPECT_FALSE(analyzer::is_measured(passed->front().cell[0].first));
}

}  // namespace
}  // namespace tycho::testing
