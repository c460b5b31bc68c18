// The laws of curvature together, on training runs that do what their settings say: below the edge,
// at it, in catapults and in divergence. None of that is a violation.
#include <gtest/gtest.h>

#include <algorithm>

#include "toy_network.h"

namespace tycho::analyzer {
namespace {

TEST(CurvatureLawsTest, DoNotCryWolf) {
  struct Setting {
    const char* optimizer;
    double learning_rate;
    double momentum;
    bool nesterov;
    double gain;
    int warm_up;
  };
  const std::vector<Setting> settings = {
      {"SGD", 0.1, 0, false, 1, 0},   {"SGD", 0.4, 0, false, 1, 0},
      {"SGD", 0.4, 0, false, 2, 0},   {"SGD", 0.4, 0, false, 1, 500},
      {"SGD", 0.1, 0.9, false, 1, 0}, {"SGD", 0.3, 0.9, false, 1, 0},
      {"SGD", 0.1, 0.9, true, 1, 0},  {"Adam", 3e-3, 0, false, 1, 0},
      {"Adam", 3e-2, 0, false, 1, 0}, {"Adam", 3e-3, 0, false, 2, 100},
  };
  int violated = 0;
  int judged = 0;
  for (const Setting& setting : settings) {
    for (const int every : {2, 25}) {
      ToyRun options;
      options.optimizer = setting.optimizer;
      options.learning_rate = setting.learning_rate;
      options.momentum = setting.momentum;
      options.nesterov = setting.nesterov;
      options.gain = setting.gain;
      options.every = every;
      options.steps = 40 * every + 600;
      options.width = 20;
      if (const int length = setting.warm_up; length > 0) {
        options.schedule = [length](int step) { return std::min(1.0, (step + 1.0) / length); };
      }
      const auto findings = train(options);
      // That long steps are not quadratic is what one_step_loss_change is there to say.
      for (const char* law : {"edge_of_stability", "catapult", "warm_up",
                              "critical_sharpness_bound", "implicit_regularization"}) {
        const Finding finding = find(findings, law, "run");
        judged += finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated;
        if (finding.verdict != Verdict::kViolated) continue;
        ++violated;
        std::printf("%s %g %g %g every %d: %s %g [%g, %g] %s\n", setting.optimizer,
                    setting.learning_rate, setting.momentum, setting.gain, every, law,
                    finding.measured, finding.ci_low, finding.ci_high, finding.gate.c_str());
      }
    }
  }
  EXPECT_EQ(violated, 0);
  EXPECT_GE(judged, 10);
}

}  // namespace
}  // namespace tycho::analyzer
