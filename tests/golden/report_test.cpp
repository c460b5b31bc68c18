#include "src/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/golden/golden_run.h"

namespace tycho::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

analyzer::Report read(const std::string& path) {
  auto report = analyzer::read_report(path, {});
  EXPECT_TRUE(report.ok()) << report.status().message();
  return std::move(report).value();
}

TEST(ReportTest, JsonHasTheFieldsOfTheContract) {
  const ScratchDirectory scratch;
  write_golden_run(scratch.path("run"));
  const auto json = nlohmann::json::parse(analyzer::json_report(read(scratch.path("run"))));
  EXPECT_EQ(json.at("schema"), "tycho-report-1");
  ASSERT_EQ(json.at("layers").size(), 2u);
  EXPECT_EQ(json.at("layers")[0].at("path"), kHostileName);
  const auto& run = json.at("run");
  EXPECT_EQ(run.at("configuration").at("note"), kHostileName);
  EXPECT_EQ(run.at("versions").at("tycho"), "0.1.0");
  EXPECT_TRUE(run.contains("lost"));
  const auto& laws = json.at("laws");
  ASSERT_TRUE(laws.is_array());
  const std::set<std::string> expected = {"law",       "line",   "scope",   "verdict", "measured",
                                          "predicted", "ci_low", "ci_high", "unit",    "window",
                                          "gate",      "advice", "source"};
  const std::set<std::string> verdicts = {"HOLDS",        "VIOLATED", "NOT_APPLICABLE",
                                          "UNDERPOWERED", "NOT_YET",  "NOT_MEASURED"};
  EXPECT_EQ(laws.empty(), analyzer::make_laws().empty());
  for (const auto& law : laws) {
    std::set<std::string> fields;
    for (const auto& [name, value] : law.items()) fields.insert(name);
    EXPECT_EQ(fields, expected);
    EXPECT_EQ(verdicts.count(law.at("verdict")), 1u) << law;
    EXPECT_TRUE(law.at("measured").is_number() || law.at("measured").is_null());
  }
}

TEST(ReportTest, HtmlShowsHostileNamesAsText) {
  const ScratchDirectory scratch;
  write_golden_run(scratch.path("run"));
  const std::string page = analyzer::html_report(read(scratch.path("run")));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, HasSubstr("&lt;/script&gt;&lt;img src=x onerror=&quot;"));
  // As many script elements as the page opens itself: data, charts, page.
  size_t closed = 0;
  for (size_t at = page.find("</script"); at != std::string::npos;
       at = page.find("</script", at + 1)) {
    ++closed;
  }
  EXPECT_EQ(closed, 3u);
}

TEST(ReportTest, HtmlNeedsNoNetwork) {
  const ScratchDirectory scratch;
  write_long_run(scratch.path("run"), 20);
  const std::string page = analyzer::html_report(read(scratch.path("run")));
  for (const char* loader : {"<link", "<img", "<iframe", "<script src", "@import", "url(",
                             "href=\"http", "fetch(", "sourceMappingURL"}) {
    EXPECT_THAT(page, Not(HasSubstr(loader)));
  }
}

TEST(ReportTest, SizeDoesNotGrowWithTheTrace) {
  const ScratchDirectory scratch;
  write_long_run(scratch.path("short"), 1000);
  write_long_run(scratch.path("long"), 8000);
  const size_t brief = analyzer::html_report(read(scratch.path("short"))).size();
  const size_t lengthy = analyzer::html_report(read(scratch.path("long"))).size();
  // Bands are there from two steps a stretch on, and digits differ: the same order, not the same.
  EXPECT_LT(lengthy, 2 * brief);
}

TEST(ReportTest, SeriesKeepsExtremesMeansAndCountsOfAllSteps) {
  const ScratchDirectory scratch;
  constexpr int64_t kSteps = 3001;
  write_long_run(scratch.path("run"), kSteps);
  const analyzer::Report report = read(scratch.path("run"));
  const auto buckets = report.series.series({"grad_norm_sq", v1::SCOPE_PARAMETER}, 2);
  ASSERT_FALSE(buckets.empty());
  const int64_t width = report.series.steps_per_bucket();
  for (size_t i = 0; i < buckets.size(); ++i) {
    const int64_t begin = static_cast<int64_t>(i) * width;
    const int64_t end = std::min(kSteps, begin + width);
    ASSERT_EQ(buckets[i].count, end - begin);
    double sum = 0;
    for (int64_t step = begin; step < end; ++step) sum += sample_value(step, 2, 2);
    // The sample falls with the step; six digits are kept.
    EXPECT_NEAR(buckets[i].max, sample_value(begin, 2, 2), 1e-6);
    EXPECT_NEAR(buckets[i].min, sample_value(end - 1, 2, 2), 1e-6);
    EXPECT_NEAR(buckets[i].mean(), sum / static_cast<double>(end - begin), 5e-6);
  }
}

TEST(ReportTest, ListsHaveASeriesForEachPosition) {
  const ScratchDirectory scratch;
  write_list_run(scratch.path("run"));
  const analyzer::Report report = read(scratch.path("run"));
  const auto first = report.series.series({"hessian_eigenvalue", v1::SCOPE_INDEX}, 0);
  const auto second = report.series.series({"hessian_eigenvalue", v1::SCOPE_INDEX}, 1);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[1].sum, 4);
  ASSERT_FALSE(second.empty());
  EXPECT_EQ(second[0].sum, 2);
  EXPECT_EQ(second.back().count, second.size() == 1 ? 1u : 0u);
  EXPECT_THAT(analyzer::html_report(report), HasSubstr("\"scope\":\"index:1\""));
}

TEST(ReportTest, CurvatureIsShownWhereItWasMeasured) {
  const ScratchDirectory scratch;
  write_curvature_run(scratch.path("run"));
  const analyzer::Report report = read(scratch.path("run"));
  const std::string text = analyzer::text_report(report, false, 80);
  EXPECT_THAT(text, HasSubstr("30 +- 1, edge of stability at 40 (ratio 0.75)"));
  EXPECT_THAT(
      text, HasSubstr("top eigenvector by layer: layers.1 (Linear) 70 %, layers.0 (Linear) 30 %"));
  EXPECT_THAT(text, HasSubstr("largest eigenvalues: 30 20 10"));
  // 0.001 is three orders of magnitude, three characters of the ramp, below 0.899.
  EXPECT_THAT(text, HasSubstr("-1 |%@"));
  EXPECT_THAT(text, HasSubstr("*| 29"));
  const std::string page = analyzer::html_report(report);
  EXPECT_THAT(page, HasSubstr("id=\"curvature\""));
  EXPECT_THAT(page, HasSubstr("\"node\":[-1.0,0.0,29.0]"));
  write_long_run(scratch.path("plain"), 3);
  const analyzer::Report plain = read(scratch.path("plain"));
  EXPECT_THAT(analyzer::html_report(plain), Not(HasSubstr("id=\"curvature\"")));
  EXPECT_THAT(analyzer::text_report(plain, false, 80), Not(HasSubstr("Curvature")));
}

TEST(ReportTest, TextHasNoControlCharactersOfTheTraceAndColoursOnlyOnRequest) {
  const ScratchDirectory scratch;
  write_golden_run(scratch.path("run"));
  const analyzer::Report report = read(scratch.path("run"));
  EXPECT_THAT(analyzer::text_report(report, false, 80), Not(HasSubstr("\x1b")));
  EXPECT_THAT(analyzer::text_report(report, true, 80), Not(HasSubstr(kHostileName)));
  EXPECT_THAT(analyzer::text_report(report, false, 80), HasSubstr("What to do"));
}

}  // namespace
}  // namespace tycho::testing
