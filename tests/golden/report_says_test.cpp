// What a report says of runs of many kinds, and in which words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/report/coverage.h"
#include "src/report/happenings.h"
#include "src/report/remarks.h"
#include "src/report/report.h"
#include "tests/golden/golden_run.h"

namespace tycho::testing {
namespace {

using analyzer::Finding;
using analyzer::LawDescription;
using analyzer::Report;
using analyzer::Severity;
using analyzer::Verdict;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// A run with two layers of two parameters each, read as far as a report needs.
Report report_of(const std::vector<double>& losses) {
  Report report;
  report.path = "runs/test";
  for (const char* path : {"rnn", "head"}) {
    v1::Layer* layer = report.model.add_layer();
    layer->set_path(path);
    for (const char* role : {"weight", "bias"}) {
      v1::Parameter* parameter = report.model.add_parameter();
      parameter->set_name(std::string(path) + "." + role);
      parameter->set_layer(static_cast<uint32_t>(report.model.layer_size()) - 1);
    }
  }
  for (size_t step = 0; step < losses.size(); ++step)
    report.loss.add(static_cast<int64_t>(step), losses[step]);
  report.frames = losses.size();
  report.first_step = 0;
  report.last_step = static_cast<int64_t>(losses.size()) - 1;
  return report;
}

std::vector<double> healthy_losses() {
  std::vector<double> losses;
  for (int step = 0; step < 400; ++step) losses.push_back(2.3 * std::exp(-step / 250.0));
  return losses;
}

void add_law(Report* report, const std::string& id, Verdict verdict, const std::string& gate,
             double measured = analyzer::kUnknown) {
  LawDescription law;
  law.id = id;
  law.title = "Law " + id;
  report->laws.push_back(law);
  Finding finding;
  finding.law = id;
  finding.scope = "run";
  finding.verdict = verdict;
  finding.gate = gate;
  finding.measured = measured;
  finding.predicted = 1;
  finding.advice = "advice of " + id;
  finding.importance = analyzer::importance(verdict, true);
  report->findings.push_back(finding);
}

v1::Event* add_event(Report* report, v1::Event::Kind kind, const std::string& code,
                     const std::string& message, v1::Scope scope = v1::SCOPE_RUN,
                     uint32_t entity = 0) {
  v1::Event event;
  event.set_kind(kind);
  event.set_code(code);
  event.set_message(message);
  event.set_scope(scope);
  event.set_entity(entity);
  event.set_count(7);
  report->events.push_back(event);
  return &report->events.back();
}

/// The three forms of a report, each on one line.
std::vector<std::string> forms(const Report& report) {
  return {analyzer::text_report(report, false, 100000), analyzer::html_report(report),
          analyzer::json_report(report)};
}

TEST(ReportSaysTest, ADivergedRunFirstAndWithoutAdvice) {
  Report report = report_of({2.3, 2.2, 3.6e22, 4e8, 1.6e6, 1.6e6});
  add_law(&report, "good", Verdict::kHolds, "");
  add_law(&report, "bad", Verdict::kViolated, "");
  for (const std::string& form : forms(report)) {
    EXPECT_THAT(form, HasSubstr("The loss diverged"));
    EXPECT_THAT(form,
                HasSubstr("Before step 2 it lay between 2.2 and 2.3; then it rose to 3.6e22 at "
                          "step 2, and was 1.6e6 at step 5"));
    EXPECT_THAT(form, Not(HasSubstr("Nothing that was checked")));
  }
  EXPECT_THAT(analyzer::what_to_do(report), IsEmpty());
  EXPECT_THAT(analyzer::text_report(report, false, 100000), Not(HasSubstr("advice of bad")));
  const auto json = nlohmann::json::parse(analyzer::json_report(report));
  ASSERT_FALSE(json.at("remarks").empty());
  EXPECT_EQ(json.at("remarks")[0].at("code"), "loss_diverged");
  EXPECT_EQ(json.at("remarks")[0].at("severity"), "alarm");
  EXPECT_EQ(json.at("remarks")[0].at("step"), 2);
  EXPECT_EQ(json.at("remarks")[0].at("value"), 3.6e22);
  EXPECT_EQ(json.at("loss").at("highest").at("step"), 2);
}

TEST(ReportSaysTest, NothingToDoNamesHowManyLawsItRestsOn) {
  Report report = report_of(healthy_losses());
  add_law(&report, "a", Verdict::kHolds, "");
  report.findings[0].advice.clear();
  add_law(&report, "b", Verdict::kNotApplicable, "the optimizer is not Adam");
  add_law(&report, "c", Verdict::kNotYet, "too few steps");
  add_law(&report, "d", Verdict::kNotYet, "too few steps");
  for (const std::string& form : forms(report))
    EXPECT_THAT(form, HasSubstr("1 of 4 laws could be tested: 1 holds"));
  const std::string text = analyzer::text_report(report, false, 100000);
  EXPECT_THAT(text, HasSubstr("in 400 observed steps, 1 of 4 laws could be tested and was not "
                              "violated. Nothing is known about the other 3: 1 does not apply"));
  EXPECT_THAT(analyzer::what_is_missing(report), ElementsAre("Law c, Law d: too few steps."));
}

TEST(ReportSaysTest, WhatTheBudgetDeferredIsOneSentence) {
  Report report = report_of(healthy_losses());
  (*report.run.mutable_options())["overhead_budget"] = "0.02";
  add_law(&report, "a", Verdict::kNotMeasured, "the sharpness was not measured: ...");
  add_law(&report, "b", Verdict::kNotMeasured, "the sharpness was not measured: ...");
  add_law(&report, "c", Verdict::kNotMeasured, "the spectrum was not measured: ...");
  add_law(&report, "d", Verdict::kNotYet, "too few steps");
  report.findings[0].deferred = report.findings[1].deferred = "sharpness";
  report.findings[2].deferred = "hessian_eigenvalue";
  EXPECT_THAT(
      analyzer::what_is_missing(report),
      ElementsAre("Law d: too few steps.",
                  "Not due within the overhead budget of 0.02: sharpness (Law a, Law b), "
                  "hessian_eigenvalue (Law c). A longer run or a larger budget records them; "
                  "SessionOptions::every(\"sharpness\", 50) requests one whatever it costs."));
}

TEST(ReportSaysTest, WhereNothingWasTestedThereIsNoAllClear) {
  Report report = report_of({2.3, 2.2});
  for (int i = 0; i < 28; ++i)
    add_law(&report, std::to_string(i), Verdict::kNotApplicable, "not for this run");
  for (const std::string& form : forms(report)) {
    EXPECT_THAT(form, HasSubstr("None of 28 laws could be tested"));
    EXPECT_THAT(form, Not(HasSubstr("calls for a change:")));
  }
  EXPECT_THAT(analyzer::nothing_to_do(report),
              HasSubstr("It is not known whether anything should change: in 2 observed steps"));
}

TEST(ReportSaysTest, AnEmptyRunSaysThatNothingIsKnown) {
  const Report report = report_of({});
  for (const std::string& form : forms(report))
    EXPECT_THAT(form, HasSubstr("No step was observed"));
  EXPECT_THAT(analyzer::remarks(report), IsEmpty());
}

TEST(ReportSaysTest, ARunWithoutALossIsToldSo) {
  Report report = report_of({});
  report.frames = 10;
  for (const std::string& form : forms(report))
    EXPECT_THAT(form, HasSubstr("The loss was not recorded"));
}

TEST(ReportSaysTest, WhereTheoryDoesNotSpeakThereAreNoNumbers) {
  Report report = report_of(healthy_losses());
  add_law(&report, "edge", Verdict::kNotApplicable, "small batches", 13480);
  for (const std::string& form : forms(report)) EXPECT_THAT(form, Not(HasSubstr("13480")));
  report.findings[0].verdict = Verdict::kUnderpowered;
  for (const std::string& form : forms(report)) EXPECT_THAT(form, HasSubstr("13480"));
}

TEST(ReportSaysTest, OneLineForAReasonWithModulesAndWhatToDo) {
  Report report = report_of(healthy_losses());
  for (uint32_t parameter = 0; parameter < 2; ++parameter) {
    const std::string name = report.model.parameter(static_cast<int>(parameter)).name();
    const std::string why = "aten::lstm takes a list of parameters";
    add_event(&report, v1::Event::NOT_OBSERVED, "per_example_gradients_not_observed",
              name + ": " + why, v1::SCOPE_PARAMETER, parameter);
    add_event(&report, v1::Event::NOT_OBSERVED, "gradient_noise_not_observed",
              "Gradient noise of " + name + " is not observed: " + why, v1::SCOPE_PARAMETER,
              parameter);
  }
  const auto seen = analyzer::happenings(report);
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].what, "gradient noise: lstm takes a list of parameters");
  EXPECT_EQ(analyzer::where(seen[0], 4), "rnn (2 parameters)");
  EXPECT_EQ(seen[0].times, 7u);
  EXPECT_THAT(seen[0].remedy, HasSubstr("microbatches"));
  for (const std::string& form : forms(report)) {
    EXPECT_THAT(form, HasSubstr("gradient noise: lstm takes"));
    EXPECT_THAT(form, HasSubstr("Split the step into two or more backward passes"));
    EXPECT_THAT(form, HasSubstr("could not be observed, for 1 reason"));
  }
}

TEST(ReportSaysTest, DifferentReasonsStayApartAndFailuresAreRemarks) {
  Report report = report_of(healthy_losses());
  add_event(&report, v1::Event::NOT_OBSERVED, "gradient_not_observed",
            "the gradient of rnn.weight is sparse", v1::SCOPE_PARAMETER, 0);
  add_event(&report, v1::Event::NOT_OBSERVED, "gradient_not_observed",
            "the gradient of head.weight is complex", v1::SCOPE_PARAMETER, 2);
  add_event(&report, v1::Event::FAULT, "probe_fault_x", "probe x failed: out of memory");
  add_event(&report, v1::Event::METHOD, "products", "by double backward");
  add_event(&report, v1::Event::STOPPED, "closed", "closed");
  EXPECT_EQ(analyzer::happenings(report).size(), 5u);
  const auto groups = analyzer::happening_groups(report);
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[0].happenings.size(), 1u);
  EXPECT_EQ(groups[1].happenings.size(), 2u);
  EXPECT_EQ(groups[1].happenings[0].what, "the gradient of it is sparse");
  const auto known = analyzer::remarks(report);
  ASSERT_EQ(known.size(), 1u);
  EXPECT_EQ(known[0].code, "instrument_failed");
  EXPECT_EQ(known[0].severity, Severity::kWarning);
}

TEST(ReportSaysTest, WhenAVerdictBecameKnown) {
  Report report = report_of(healthy_losses());
  add_law(&report, "good", Verdict::kHolds, "", 1);
  add_law(&report, "bad", Verdict::kViolated, "", 2);
  for (const std::string& form : forms(report)) EXPECT_THAT(form, Not(HasSubstr("since step")));
  v1::Finding said;
  said.set_kind(v1::Finding::VERDICT);
  said.set_law("bad");
  said.set_scope("run");
  said.set_verdict(v1::Finding::VIOLATED);
  said.set_step(123);
  report.verdict_times.observe(said);
  EXPECT_THAT(analyzer::text_report(report, false, 100000), HasSubstr("known since step 123"));
  EXPECT_THAT(analyzer::html_report(report), HasSubstr("since step 123"));
  const auto known = nlohmann::json::parse(analyzer::json_report(report)).at("known_since");
  EXPECT_EQ(known, nlohmann::json::parse(
                       R"([{"law":"bad","scope":"run","verdict":"VIOLATED","step":123}])"));
}

TEST(ReportSaysTest, AnOverflowThatWasSkippedIsNoAlarm) {
  Report report = report_of(healthy_losses());
  add_event(&report, v1::Event::NON_FINITE, "non_finite_gradient", "the gradient has 3 infinities",
            v1::SCOPE_PARAMETER, 2)
      ->set_step(5);
  auto known = analyzer::remarks(report);
  ASSERT_EQ(known.size(), 1u);
  EXPECT_EQ(known[0].severity, Severity::kWarning);
  EXPECT_THAT(known[0].text, HasSubstr("First at step 5, in head.weight"));
  report.events[0].set_step(399);
  known = analyzer::remarks(report);
  EXPECT_EQ(known[0].severity, Severity::kAlarm);
}

/// `steps` steps at which this share of a layer's units was silent.
void write_silent_units(const std::string& directory, int64_t steps,
                        const std::function<double(int64_t)>& share) {
  v1::StatisticRegistry registry = sample_registry();
  v1::StatisticDefinition* definition = registry.add_statistic();
  definition->set_id(3);
  definition->set_name("dead_fraction");
  definition->add_scope(v1::SCOPE_LAYER);
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, sample_run("silent"), sample_model(2), registry);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (int64_t step = 0; step < steps; ++step) {
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_statistic(3);
    column->set_scope(v1::SCOPE_LAYER);
    column->add_entity(1);
    column->add_value(share(step));
    writer.value()->write("activations", record, 1000 + step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

std::vector<std::string> codes_of(const std::string& directory) {
  const auto report = analyzer::read_report(directory, {});
  EXPECT_TRUE(report.ok());
  std::vector<std::string> codes;
  for (const auto& remark : analyzer::remarks(report.value())) codes.push_back(remark.code);
  return codes;
}

TEST(ReportSaysTest, UnitsAreSilentOnlyIfTheyAreAtEveryOfManySteps) {
  const ScratchDirectory scratch;
  write_silent_units(scratch.path("four"), 4, [](int64_t) { return 0.55; });
  EXPECT_THAT(codes_of(scratch.path("four")), Not(Contains("dead_units")));
  write_silent_units(scratch.path("many"), 400, [](int64_t) { return 0.55; });
  EXPECT_THAT(codes_of(scratch.path("many")), Contains("dead_units"));
  // Units that fire for few examples are silent in most batches, but not in all.
  write_silent_units(scratch.path("sparse"), 400,
                     [](int64_t step) { return step % 10 == 0 ? 0.1 : 0.6; });
  EXPECT_THAT(codes_of(scratch.path("sparse")), Not(Contains("dead_units")));
}

}  // namespace
}  // namespace tycho::testing
