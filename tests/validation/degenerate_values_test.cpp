// What all laws read, with values that no theory speaks of: zeros, infinities, NaN, huge numbers of
// either sign, lists of one entry, settings without a group. Laws may say nothing, and nothing may
// break.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "findings.h"
#include "simulated_run.h"
#include "tycho/analyzer/law.h"

namespace tycho::analyzer {
namespace {

std::set<std::string> all_statistics() {
  std::set<std::string> names;
  for (const auto& law : make_laws()) {
    for (const std::string& name : law->description().statistics) names.insert(name);
  }
  return names;
}

enum class Settings { kNone, kWithoutGroup, kSgd };

std::vector<Finding> feed(const std::function<double(int)>& value, Settings settings, size_t list) {
  const std::set<std::string> names = all_statistics();
  Engine engine;
  SimulatedRun run(engine);
  for (const char* path : {"0", "2", "4", "6", "8"})
    run.add_parameter(run.add_layer(path), "weight", {3, 3});
  for (const std::string& name : names) run.statistic(name);
  run.open();
  if (settings == Settings::kWithoutGroup) engine.on_optimizer(v1::OptimizerSettings(), 0);
  if (settings == Settings::kSgd) {
    v1::ParameterGroup group;
    group.set_learning_rate(0.1);
    run.settings(0, "SGD", group);
  }
  int count = 0;
  for (int step = 0; step < 80; ++step) {
    run.step(step);
    for (const std::string& name : names) {
      run.put(name, value(count++));
      for (const v1::Scope scope : {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER, v1::SCOPE_INDEX}) {
        std::vector<double> values;
        for (size_t i = 0; i < (scope == v1::SCOPE_INDEX ? list : 5); ++i)
          values.push_back(value(count++));
        run.put(name, scope, values);
      }
    }
  }
  run.finish();
  return engine.findings();
}

TEST(DegenerateValuesTest, NothingBreaksAndEveryLawSaysSomething) {
  const double infinity = std::numeric_limits<double>::infinity();
  std::mt19937 generator(1);
  std::cauchy_distribution<double> wild(0, 1e3);
  const std::vector<std::function<double(int)>> streams = {
      [](int) { return 0.0; },
      [](int) { return std::nan(""); },
      [=](int) { return infinity; },
      [=](int) { return -infinity; },
      [](int) { return -1.0; },
      [](int) { return 1.0; },
      [](int) { return 1e300; },
      [](int) { return 1e-300; },
      [](int k) { return k % 3 == 0 ? std::nan("") : 1.0 + k % 7; },
      [&](int) { return wild(generator); },
  };
  for (const auto& stream : streams) {
    for (const Settings settings : {Settings::kNone, Settings::kWithoutGroup, Settings::kSgd}) {
      for (const size_t list : {1, 5}) {
        std::set<std::string> heard;
        for (const Finding& finding : feed(stream, settings, list)) {
          heard.insert(finding.law);
          EXPECT_FALSE(finding.gate.empty() && finding.advice.empty() &&
                       finding.verdict == Verdict::kNotApplicable)
              << finding.law << " does not say why";
        }
        EXPECT_EQ(heard.size(), make_laws().size());
      }
    }
  }
}

TEST(DegenerateValuesTest, SilenceIsNoVerdict) {
  for (const Finding& finding : feed([](int) { return std::nan(""); }, Settings::kSgd, 5)) {
    EXPECT_NE(verdict(finding), "HOLDS") << finding.law << " " << finding.gate;
    EXPECT_NE(verdict(finding), "VIOLATED") << finding.law << " " << finding.gate;
  }
}

}  // namespace
}  // namespace tycho::analyzer
