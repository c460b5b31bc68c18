// What a report says of a run whose trainer gave its held-out loss, in its three forms, and what
// was said of it while it was going on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "src/report/report.h"
#include "tests/golden/golden_run.h"
#include "tycho/analyzer/live_judge.h"
#include "tycho/trace/run_writer.h"

namespace tycho::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kSteps = 1200;

/// 60 held-out losses, lowest at step 400, each in a record of its own at the step that was
/// finished last; `rise`: of the last one.
void write_run(const std::string& directory, double rise) {
  v1::StatisticRegistry registry;
  for (const char* name : {"loss", "update_norm_sq", "weight_norm_sq", "validation_loss"}) {
    v1::StatisticDefinition* definition = registry.add_statistic();
    definition->set_id(static_cast<uint32_t>(registry.statistic_size()) - 1);
    definition->set_name(name);
  }
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, sample_run("held out"), sample_model(1), registry);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  const auto put = [](v1::Record* record, uint32_t statistic, v1::Scope scope, double value) {
    v1::Column* column = record->add_column();
    column->set_statistic(statistic);
    column->set_scope(scope);
    if (scope == v1::SCOPE_PARAMETER) column->add_entity(0);
    column->add_value(value);
  };
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto t = static_cast<double>(step);
    v1::Record record;
    record.set_step(step);
    put(&record, 0, v1::SCOPE_RUN, 2 * std::exp(-t / 600) * std::exp(0.1 * normal(random)));
    put(&record, 1, v1::SCOPE_PARAMETER, 1e-4);
    put(&record, 2, v1::SCOPE_PARAMETER, 1);
    writer.value()->write("scalars", record, 1000 + step);
    if (step % 20 != 19) continue;
    v1::Record held_out;
    held_out.set_step(step);
    const double level = t < 400 ? 1 + (400 - t) * (400 - t) / 160000 : 1 + rise * (t - 400) / 800;
    put(&held_out, 3, v1::SCOPE_RUN, level * std::exp(0.01 * normal(random)));
    writer.value()->write("validation", held_out, 1000 + step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

analyzer::Report read(const std::string& path) {
  auto report = analyzer::read_report(path, {});
  EXPECT_TRUE(report.ok()) << report.status().message();
  return std::move(report).value();
}

nlohmann::json with_code(const nlohmann::json& all, const std::string& code) {
  for (const auto& each : all) {
    if (each.at("code") == code) return each;
  }
  return nullptr;
}

TEST(HeldOutReportTest, OverfittingIsSaidInAllForms) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 0.3);
  const analyzer::Report report = read(scratch.path("run"));
  const std::string text = analyzer::text_report(report, false, 100000);
  const std::string page = analyzer::html_report(report);
  for (const std::string& form : {text, page}) {
    EXPECT_THAT(form, HasSubstr("The held-out loss was "));
    EXPECT_THAT(form, HasSubstr(" it has risen by 0."));
    EXPECT_THAT(form, HasSubstr(", while the training loss fell from "));
    // The decision says it; the remark would say it again.
    EXPECT_THAT(form, Not(HasSubstr("The held-out loss rises while the training loss falls")));
    EXPECT_THAT(form, HasSubstr("Keep the weights of step "));
  }
  const auto json = nlohmann::json::parse(analyzer::json_report(report));
  const auto& held_out = json.at("held_out");
  EXPECT_EQ(held_out.at("course"), "risen");
  EXPECT_EQ(held_out.at("training"), "fell");
  EXPECT_EQ(held_out.at("values"), 60);
  const int64_t best = held_out.at("best").at("step");
  EXPECT_NEAR(static_cast<double>(best), 400, 100);
  EXPECT_LE(held_out.at("best").at("begin"), best);
  EXPECT_GE(held_out.at("best").at("end"), best);
  // The mean over the last third of what came after: 5/6 of the rise.
  EXPECT_NEAR(held_out.at("rise").at("value").get<double>(), 0.25, 0.03);
  EXPECT_GT(held_out.at("rise").at("low").get<double>(), 0.1);
  EXPECT_LT(held_out.at("training_change").at("high").get<double>(), 0);
  EXPECT_NEAR(held_out.at("gap").get<double>(), 1.25 - 2 * std::exp(-1070.0 / 600), 0.1);
  const auto remark = with_code(json.at("remarks"), "overfitting");
  ASSERT_TRUE(remark.is_object());
  EXPECT_EQ(remark.at("severity"), "warning");
  EXPECT_EQ(remark.at("step"), best);
  EXPECT_EQ(remark.at("statistic"), "validation_loss");
  const auto decision = with_code(json.at("decisions"), "overfitting");
  ASSERT_TRUE(decision.is_object());
  EXPECT_EQ(decision.at("setting"), "steps");
  EXPECT_NEAR(decision.at("factor").get<double>(), static_cast<double>(best) / kSteps, 1e-3);
  EXPECT_EQ(decision.at("step"), best);
}

TEST(HeldOutReportTest, WhileTheRunGoesOnTheSameIsSaid) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 0.3);
  int64_t first = -1;
  analyzer::LiveJudge judge([&](const analyzer::LiveFinding& finding) {
    if (finding.law != "overfitting") return;
    EXPECT_EQ(finding.kind, analyzer::LiveFinding::Kind::kAlarm) << finding.step;
    if (first < 0) first = finding.step;
  });
  auto reader = trace::RunReader::open(scratch.path("run"));
  ASSERT_TRUE(reader.ok());
  ASSERT_TRUE(reader.value()->read(judge).ok());
  judge.finish();
  EXPECT_GT(first, 400);
  EXPECT_LT(first, 900);
  const auto json = nlohmann::json::parse(analyzer::json_report(read(scratch.path("run"))));
  std::string said;
  for (const analyzer::LiveFinding& finding : judge.findings()) {
    if (finding.law == "overfitting") said = finding.gate;
  }
  EXPECT_EQ(said, with_code(json.at("remarks"), "overfitting").at("text").get<std::string>());
}

TEST(HeldOutReportTest, OfALossThatRestsNothingIsAdvised) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 0);
  const analyzer::Report report = read(scratch.path("run"));
  EXPECT_THAT(analyzer::text_report(report, false, 100000),
              HasSubstr("; a rise since cannot be told from its scatter."));
  const auto json = nlohmann::json::parse(analyzer::json_report(report));
  EXPECT_EQ(json.at("held_out").at("course"), "not_told");
  EXPECT_TRUE(with_code(json.at("remarks"), "overfitting").is_null());
  EXPECT_TRUE(with_code(json.at("remarks"), "held_out_falls").is_null());
  EXPECT_TRUE(with_code(json.at("decisions"), "overfitting").is_null());
}

TEST(HeldOutReportTest, WithoutAHeldOutLossNothingIsSaid) {
  const ScratchDirectory scratch;
  write_long_run(scratch.path("run"), 200);
  const analyzer::Report report = read(scratch.path("run"));
  EXPECT_THAT(analyzer::text_report(report, false, 100000), Not(HasSubstr("held-out loss was")));
  EXPECT_TRUE(nlohmann::json::parse(analyzer::json_report(report)).at("held_out").is_null());
}

}  // namespace
}  // namespace tycho::testing
