// What a report says of a run whose loss went wrong, in its three forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "src/report/report.h"
#include "tests/golden/golden_run.h"
#include "tycho/trace/run_writer.h"

namespace tycho::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kLayers = 4;
constexpr int64_t kWrong = 150;

struct Fault {
  double loss = 1;             ///< its factor from kWrong on
  double gradient = 1;         ///< factor of the gradient of layer 2 from kWrong - 2 on
  int64_t from = kWrong;       ///< the loss's step
  int64_t gradient_every = 1;  ///< steps from one observation of the gradient to the next
};

void write_run(const std::string& directory, int64_t steps, const Fault& fault) {
  v1::StatisticRegistry registry;
  for (const char* name : {"loss", "grad_norm_sq"}) {
    v1::StatisticDefinition* definition = registry.add_statistic();
    definition->set_id(static_cast<uint32_t>(registry.statistic_size()) - 1);
    definition->set_name(name);
  }
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, sample_run("wrong"), sample_model(kLayers), registry);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  for (int64_t step = 0; step < steps; ++step) {
    v1::Record record;
    record.set_step(step);
    v1::Column* loss = record.add_column();
    loss->set_statistic(0);
    loss->set_scope(v1::SCOPE_RUN);
    loss->add_value((0.5 + 2 * std::exp(-static_cast<double>(step) / 60)) *
                    std::exp(0.05 * normal(random)) * (step >= fault.from ? fault.loss : 1));
    if (step % fault.gradient_every == 0) {
      v1::Column* gradient = record.add_column();
      gradient->set_statistic(1);
      gradient->set_scope(v1::SCOPE_LAYER);
      for (int i = 0; i < kLayers; ++i) {
        gradient->add_entity(static_cast<uint32_t>(i));
        const double grown = i == 2 && step >= kWrong - 2 ? fault.gradient : 1;
        gradient->add_value(std::pow(grown * std::exp(0.2 * normal(random)), 2));
      }
    }
    writer.value()->write("scalars", record, 1000 + step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

analyzer::Report read(const std::string& path) {
  auto report = analyzer::read_report(path, {});
  EXPECT_TRUE(report.ok()) << report.status().message();
  return std::move(report).value();
}

nlohmann::json json_of(const analyzer::Report& report) {
  return nlohmann::json::parse(analyzer::json_report(report));
}

TEST(IncidentReportTest, TheLayerThatMovedFirstIsSaidInAllForms) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 200, {100, 50});
  const analyzer::Report report = read(scratch.path("run"));
  const std::string text = analyzer::text_report(report, false, 100000);
  const std::string page = analyzer::html_report(report);
  const std::string name = report.layer_label(2);
  for (const std::string& form : {text, page}) {
    EXPECT_THAT(form, HasSubstr("What went wrong"));
    EXPECT_THAT(form, HasSubstr("was seen to move first: at step 148 it was "));
    EXPECT_THAT(form, HasSubstr("it says nothing about causes"));
  }
  EXPECT_THAT(text, HasSubstr("Of everything recorded, the norm of the gradient of " + name));
  EXPECT_THAT(text, HasSubstr("; in its range at step 147"));
  EXPECT_THAT(page, HasSubstr("href=\"#wrong\""));
  const auto incidents = json_of(report).at("incidents");
  ASSERT_EQ(incidents.size(), 1u);
  EXPECT_EQ(incidents[0].at("step"), kWrong);
  EXPECT_EQ(incidents[0].at("order"), "first");
  EXPECT_EQ(incidents[0].at("series_moved"), 2);
  const auto& moved = incidents[0].at("moved");
  ASSERT_EQ(moved.size(), 2u);
  EXPECT_EQ(moved[0].at("quantity"), "gradient");
  EXPECT_EQ(moved[0].at("statistic"), "grad_norm_sq");
  EXPECT_EQ(moved[0].at("scope"), "layer:" + report.model.layer(2).path());
  EXPECT_EQ(moved[0].at("step"), kWrong - 2);
  EXPECT_EQ(moved[0].at("within_at"), kWrong - 3);
  EXPECT_NEAR(moved[0].at("value").get<double>(), 50, 30);
  EXPECT_NEAR(moved[0].at("usual").get<double>(), 1, 0.1);
  EXPECT_GT(moved[0].at("spreads").get<double>(), 6);
  EXPECT_EQ(moved[1].at("quantity"), "loss");
  EXPECT_EQ(moved[1].at("scope"), "run");
}

TEST(IncidentReportTest, ATieAndAnOrderThatIsNotSureAreSaid) {
  const ScratchDirectory scratch;
  write_run(scratch.path("tie"), 200, {100, 50, kWrong - 2});
  const analyzer::Report tie = read(scratch.path("tie"));
  EXPECT_THAT(
      analyzer::text_report(tie, false, 100000),
      HasSubstr("It cannot be told which moved first, because they were observed at the same "
                "step, 148: the loss and the norm of the gradient of "));
  EXPECT_EQ(json_of(tie).at("incidents")[0].at("order"), "same_step");
  // The gradient moved at step 148, and was observed at steps 147 and 154.
  write_run(scratch.path("sparse"), 300, {100, 50, kWrong, 7});
  const analyzer::Report sparse = read(scratch.path("sparse"));
  EXPECT_THAT(analyzer::text_report(sparse, false, 100000),
              HasSubstr("may have moved as early. It was last seen in its usual range at step 147, "
                        "and outside at step 154."));
  EXPECT_EQ(json_of(sparse).at("incidents")[0].at("order"), "uncertain");
  // Too few to know what was usual.
  write_run(scratch.path("rare"), 300, {100, 50, kWrong, 20});
  EXPECT_THAT(analyzer::text_report(read(scratch.path("rare")), false, 100000),
              HasSubstr("; 4 had too few values before it"));
}

TEST(IncidentReportTest, OfHealthyAndOfShortRunsNothingIsSaid) {
  const ScratchDirectory scratch;
  write_run(scratch.path("healthy"), 400, {});
  const analyzer::Report healthy = read(scratch.path("healthy"));
  EXPECT_THAT(analyzer::text_report(healthy, false, 100000), Not(HasSubstr("What went wrong")));
  EXPECT_THAT(analyzer::html_report(healthy), Not(HasSubstr("What went wrong")));
  EXPECT_TRUE(json_of(healthy).at("incidents").empty());
  write_run(scratch.path("short"), 20, {1e9, 1, 5});
  EXPECT_THAT(analyzer::text_report(read(scratch.path("short")), false, 100000),
              HasSubstr("The loss diverged after 5 observed losses: too few to establish"));
}

TEST(IncidentReportTest, WhereNothingCameBeforeOnlyWhatIsNotFiniteIsOrdered) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 40, {std::nan(""), 1, 5});
  const std::string text = analyzer::text_report(read(scratch.path("run")), false, 100000);
  EXPECT_THAT(text, HasSubstr("the loss was the first to become non-finite, at step 5."));
  EXPECT_THAT(text,
              HasSubstr("With fewer than 16 earlier observations, the usual range is not known"));
}

// 1 500 of 2 000 steps at the floor of 0.5.
TEST(IncidentReportTest, StepsThatChangedNothingAreCounted) {
  const ScratchDirectory scratch;
  write_run(scratch.path("run"), 2000, {});
  const analyzer::Report report = read(scratch.path("run"));
  EXPECT_THAT(analyzer::text_report(report, false, 100000), HasSubstr(" of 2000 steps (8"));
  const auto end = json_of(report).at("progress_end");
  ASSERT_TRUE(end.is_object());
  EXPECT_NEAR(end.at("level").get<double>(), 0.5, 0.01);
  EXPECT_LE(end.at("at_most").get<double>(), 0.01);
  EXPECT_LE(end.at("earliest"), end.at("step"));
  EXPECT_EQ(end.at("steps_after").get<int>() + end.at("step").get<int>(), 2000);
  write_run(scratch.path("short"), 200, {});
  EXPECT_TRUE(json_of(read(scratch.path("short"))).at("progress_end").is_null());
}

}  // namespace
}  // namespace tycho::testing
