// Why a law says nothing: the reason is the true one, and what it asks for is what is missing.
#include <gmock/gmock.h>

#include <functional>
#include <string>
#include <vector>

#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Options {
  std::string optimizer = "SGD";
  bool probe_loss = true;
  std::string budget = "0.02";
  std::vector<std::string> statistics;  // that the session was to record, beside the loss
  std::vector<std::pair<std::string, std::string>> events;  // code, message
};

/// A short run of which only the losses were recorded.
std::vector<Finding> simulate(const Options& options) {
  Engine engine;
  SimulatedRun run(engine);
  run.run().set_optimizer(options.optimizer);
  (*run.run().mutable_options())["overhead_budget"] = options.budget;
  run.add_parameter(run.add_layer("0"), "weight", {10, 10});
  for (const char* name : {"loss", "probe_loss", "learning_rate"}) run.statistic(name);
  for (const std::string& name : options.statistics) {
    run.statistic(name);
    run.registry().mutable_statistic(run.registry().statistic_size() - 1)->set_probe(name);
  }
  run.open();
  for (const auto& [code, message] : options.events) {
    v1::Event event;
    event.set_kind(v1::Event::NOT_OBSERVED);
    event.set_code(code);
    event.set_message(message);
    event.set_count(1);
    engine.on_event(event, 0);
  }
  v1::ParameterGroup group;
  group.set_learning_rate(0.1);
  run.settings(0, options.optimizer, group);
  for (int step = 0; step < 60; ++step) {
    run.step(step);
    run.put("loss", 1.0 / (1 + step));
    run.put("learning_rate", 0.1);
    if (options.probe_loss) run.put("probe_loss", 1.0 / (2 + step));
  }
  run.finish();
  return engine.findings();
}

TEST(ReasonsTest, WhoGaveAProbeLossIsNotAskedForOne) {
  for (const Finding& finding : simulate({}))
    EXPECT_THAT(finding.gate, Not(HasSubstr("needs a probe loss (Session"))) << finding.law;
  Options scheduled;
  scheduled.statistics = {"sharpness"};
  const Finding edge = find(simulate(scheduled), "edge_of_stability", "run");
  EXPECT_EQ(verdict(edge), "NOT_MEASURED");
  EXPECT_THAT(edge.gate, HasSubstr("overhead budget of 0.02"));
  EXPECT_THAT(edge.gate, HasSubstr("every(\"sharpness\", 50)"));
}

TEST(ReasonsTest, WhoGaveNoneIs) {
  Options options;
  options.probe_loss = false;
  options.statistics = {"sharpness"};
  const Finding edge = find(simulate(options), "edge_of_stability", "run");
  EXPECT_EQ(verdict(edge), "NOT_MEASURED");
  EXPECT_THAT(edge.gate, HasSubstr("sharpness needs a probe loss (Session::set_probe_loss)"));
}

TEST(ReasonsTest, WhatTheSessionDoesNotRecordIsNamed) {
  const Finding edge = find(simulate({}), "edge_of_stability", "run");
  EXPECT_EQ(verdict(edge), "NOT_MEASURED");
  EXPECT_THAT(edge.gate, HasSubstr("SessionOptions::every(\"sharpness\", 50) adds it"));
  Options adam;
  adam.optimizer = "Adam";
  EXPECT_THAT(find(simulate(adam), "edge_of_stability", "run").gate,
              HasSubstr("every(\"preconditioned_sharpness\", 50) adds it"));
  const Finding outliers = find(simulate({}), "hessian_outliers", "run");
  EXPECT_EQ(verdict(outliers), "NOT_MEASURED");
  EXPECT_THAT(outliers.gate, HasSubstr("every(\"hessian_eigenvalue\", 50)"));
}

TEST(ReasonsTest, WhatTheSessionSaidIsTheReason) {
  Options failed;
  failed.statistics = {"sharpness"};
  failed.events = {{"probe_loss_failed", "the probe loss failed and is not evaluated any more"}};
  EXPECT_THAT(find(simulate(failed), "edge_of_stability", "run").gate,
              HasSubstr("failed and is not evaluated any more"));
  Options noise;
  noise.statistics = {"grad_noise_trace"};
  noise.events = {{"grad_noise_trace_not_observed", "aten::lstm takes a list of parameters"}};
  const Finding scale = find(simulate(noise), "gradient_noise_scale", "run");
  EXPECT_EQ(verdict(scale), "NOT_MEASURED");
  EXPECT_THAT(scale.gate, HasSubstr("aten::lstm takes a list of parameters"));
}

TEST(ReasonsTest, WhoseTapeServesIsNotAskedForALoss) {
  Options taped;
  taped.statistics = {"kernel_distance", "batch_sharpness"};
  taped.events = {{"probe_loss_from_tape", "the probe loss is that of the first batch"}};
  for (const char* law : {"learning_regime", "batch_sharpness"}) {
    const Finding finding = find(simulate(taped), law, "run");
    EXPECT_EQ(verdict(finding), "NOT_MEASURED") << law;
    EXPECT_THAT(finding.gate, Not(HasSubstr("needs"))) << law;
  }
  Options refused;
  refused.probe_loss = false;
  refused.statistics = {"sharpness"};
  refused.events = {
      {"tape_refused", "the loss cannot be evaluated again: autocast. What needs it"}};
  const Finding edge = find(simulate(refused), "edge_of_stability", "run");
  EXPECT_THAT(edge.gate, HasSubstr("cannot be evaluated again: autocast"));
  EXPECT_THAT(edge.gate, Not(HasSubstr("What needs it")));
}

// Of every law: no number where nothing was judged, and never NOT_APPLICABLE for want of
// statistics.
TEST(ReasonsTest, NoLawSpeaksOrExcusesItselfFalsely) {
  for (const std::string optimizer : {"SGD", "Adam", "AdamW", "RMSprop"}) {
    Options options;
    options.optimizer = optimizer;
    for (const Finding& finding : simulate(options)) {
      SCOPED_TRACE(finding.law + ": " + finding.gate);
      // The loss is there, for 60 steps.
      const bool few = finding.verdict == Verdict::kNotYet && finding.law == "loss_forecast";
      EXPECT_TRUE(few || finding.verdict == Verdict::kNotMeasured ||
                  finding.verdict == Verdict::kNotApplicable)
          << verdict(finding);
      EXPECT_TRUE(std::isnan(finding.measured) && std::isnan(finding.predicted));
      EXPECT_FALSE(finding.gate.empty());
      if (finding.verdict == Verdict::kNotMeasured) {
        EXPECT_TRUE(finding.gate.find("every(") != std::string::npos ||
                    finding.gate.find("observed") != std::string::npos);
      } else {
        EXPECT_THAT(finding.gate, Not(HasSubstr("not measured")));
        EXPECT_THAT(finding.gate, Not(HasSubstr("not recorded")));
      }
    }
  }
}

}  // namespace
}  // namespace tycho::analyzer
