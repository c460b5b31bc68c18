// L = L0 + t^-mu + p^-nu with horizons t* proportional to p^(nu/mu) collapses exactly; noise
// between seeds is all that is left (theory T2.13, with the numbers of its source: L0 3.134, mu
// 0.41, nu 0.37).
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "findings.h"
#include "simulated_sweep.h"

namespace tycho::analyzer {
namespace {

constexpr double kFloor = 3.134;
constexpr double kMu = 0.41;
constexpr double kNu = 0.37;

struct Options {
  std::vector<int> widths = {64, 128, 256, 512};
  int seeds = 3;
  bool horizons = true;  // grow with the width
  uint32_t seed = 0;
  /// Multiplies the part of the loss above its floor at x = t/t*; nothing: 1.
  std::function<double(int width, double x)> distort;
};

RunDigest simulate(int width, int seed, const Options& options) {
  SweepRun run("w" + std::to_string(width) + "-s" + std::to_string(seed));
  run->add_parameter(run->add_layer("0"), "weight", {width, width});
  run->statistic("loss");
  run.optimize("Adam", 0.01);
  run.open();
  std::seed_seq sequence{options.seed, static_cast<uint32_t>(width), static_cast<uint32_t>(seed)};
  std::mt19937 generator(sequence);
  std::normal_distribution<double> normal;
  const double weights = static_cast<double>(width) * width;
  const double horizon = options.horizons ? std::round(0.5 * std::pow(weights, kNu / kMu)) : 3000;
  // A seed's loss is above or below by a share that wanders slowly.
  double wander = 0.002 * normal(generator);
  for (int step = 0; step < static_cast<int>(horizon); ++step) {
    const double x = (step + 1) / horizon;
    wander += 0.002 * std::sqrt(4 / horizon) * normal(generator);
    const double scale = options.distort ? options.distort(width, x) : 1;
    const double above = std::pow(step + 1, -kMu) + std::pow(weights * 0.5, -kNu);
    run->step(step);
    run->put("loss", kFloor + above * scale * (1 + wander));
  }
  return run.take();
}

ComparisonFinding judge(const Options& options) {
  std::vector<RunDigest> runs;
  for (const int width : options.widths) {
    for (int seed = 0; seed < options.seeds; ++seed) {
      runs.push_back(simulate(width, seed, options));
    }
  }
  return whole(make_curve_collapse()->findings(RunSet(std::move(runs), {})));
}

TEST(CurveCollapseTest, PowerLawsWithTheirOwnHorizonsCollapse) {
  const ComparisonFinding finding = judge({});
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured << " [" << finding.ci_low << ", "
                                       << finding.ci_high << "] " << finding.gate;
  EXPECT_NE(finding.gate.find("is a fit"), std::string::npos);
}

TEST(CurveCollapseTest, AWidthThatLearnsDifferentlyBreaksIt) {
  Options options;
  options.distort = [](int width, double x) { return width == 512 ? 1 + 0.5 * (1 - x) : 1.0; };
  const ComparisonFinding finding = judge(options);
  EXPECT_EQ(verdict(finding), "VIOLATED") << finding.measured << " " << finding.gate;
  EXPECT_FALSE(finding.advice.empty());
}

TEST(CurveCollapseTest, EqualHorizonsAreNotApplicable) {
  Options options;
  options.horizons = false;
  EXPECT_EQ(verdict(judge(options)), "NOT_APPLICABLE");
}

TEST(CurveCollapseTest, SilentWithoutSeedsOrWidths) {
  Options options;
  options.seeds = 1;
  EXPECT_EQ(verdict(judge(options)), "UNDERPOWERED");
  options.widths = {64, 128};
  EXPECT_EQ(verdict(judge(options)), "NOT_APPLICABLE");
}

CalibrationCase rates(const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  change(options);
  CalibrationCase result{"curve_collapse", setting, expected, [options](uint32_t seed) {
                           Options seeded = options;
                           seeded.seed = seed;
                           return judge(seeded);
                         }};
  result.power = 0.5;
  return result;
}

const CalibrationCases kCases({
    rates("power laws to their own horizons, four widths, three seeds", Expected::kHolds,
          [](Options&) {}),
    rates("the widest learns differently", Expected::kViolated,
          [](Options& o) {
            o.distort = [](int width, double x) { return width == 512 ? 1 + 0.5 * (1 - x) : 1.0; };
          }),
    rates("equal horizons", Expected::kSilent, [](Options& o) { o.horizons = false; }),
    rates("one seed", Expected::kSilent, [](Options& o) { o.seeds = 1; }),
});

}  // namespace
}  // namespace tycho::analyzer
