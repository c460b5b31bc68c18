// Traces that were written once stay readable: every version's samples, with today's reader.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <limits>

#include "src/export/export.h"
#include "src/report/report.h"
#include "tests/golden/golden_run.h"

namespace tycho::testing {
namespace {

TEST(OldTraces, HoldTheValuesTheyWereWrittenWith) {
  const ScratchDirectory scratch;
  int runs = 0;
  for (const auto& version : std::filesystem::directory_iterator(TYCHO_GOLDEN_TRACES)) {
    if (!version.is_directory()) continue;
    for (const auto& run : std::filesystem::directory_iterator(version.path())) {
      if (!run.is_directory()) continue;
      SCOPED_TRACE(run.path().string());
      const std::string path = scratch.path("exported.csv");
      std::FILE* out = std::fopen(path.c_str(), "wb");
      ASSERT_NE(out, nullptr);
      const auto outcome = analyzer::export_csv(run.path().string(), out);
      std::fclose(out);
      ASSERT_TRUE(outcome.ok()) << outcome.status().message();
      EXPECT_TRUE(outcome.value().losses.empty());
      EXPECT_EQ(read_file(path), read_file(run.path().string() + ".csv"));
      ++runs;
    }
  }
  EXPECT_GE(runs, 2);
}

// Steps as far apart as numbers allow, out of a hostile file.
TEST(ReportTest, StepsAtTheEndsOfTheNumbers) {
  const ScratchDirectory scratch;
  trace::RunWriterOptions options;
  options.directory = scratch.path("run");
  auto writer =
      trace::RunWriter::open(options, sample_run("far"), sample_model(2), sample_registry());
  ASSERT_TRUE(writer.ok());
  using Limits = std::numeric_limits<int64_t>;
  for (const int64_t step : {Limits::min(), int64_t{-1}, int64_t{0}, Limits::max()}) {
    writer.value()->write("scalars", sample_record(step, 2), 1000);
  }
  ASSERT_TRUE(writer.value()->close().ok());
  const auto report = analyzer::read_report(options.directory, {});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_GT(analyzer::html_report(report.value()).size(), 1000u);
  EXPECT_GT(analyzer::json_report(report.value()).size(), 100u);
}

}  // namespace
}  // namespace tycho::testing
