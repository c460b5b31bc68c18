#include "calibration/calibration.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <mutex>
#include <random>
#include <thread>

namespace tycho::analyzer {
namespace {

constexpr size_t kFewestRuns = 40;

/// Of all threads.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

}  // namespace

std::vector<CalibrationCase>& calibration_cases() {
  static std::vector<CalibrationCase> cases;
  return cases;
}

CalibrationCases::CalibrationCases(std::vector<CalibrationCase> cases) {
  for (CalibrationCase& setting : cases) calibration_cases().push_back(std::move(setting));
}

double slack(double share, int runs) {
  return 3.3 * std::sqrt(share * (1 - share) / runs) + 0.5 / runs;
}

void Tally::add(const Tally& another) {
  runs += another.runs;
  holds += another.holds;
  violated += another.violated;
  underpowered += another.underpowered;
  intervals += another.intervals;
  covered += another.covered;
  seconds += another.seconds;
}

Tally measure(const CalibrationCase& setting, int runs, double seconds, uint64_t seed) {
  Tally tally;
  std::seed_seq sequence{static_cast<uint32_t>(seed),
                         static_cast<uint32_t>(std::hash<std::string>{}(setting.law)),
                         static_cast<uint32_t>(std::hash<std::string>{}(setting.setting))};
  std::vector<uint32_t> seeds(static_cast<size_t>(runs));
  sequence.generate(seeds.begin(), seeds.end());
  std::mutex mutex;
  const auto take = [&](const Finding& finding) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++tally.runs;
    tally.holds += finding.verdict == Verdict::kHolds;
    tally.violated += finding.verdict == Verdict::kViolated;
    tally.underpowered += finding.verdict == Verdict::kUnderpowered;
    const double truth = setting.predicted_is_true ? finding.predicted : setting.truth;
    if (!std::isfinite(truth) || !(finding.ci_low > -1e300 && finding.ci_high < 1e300)) return;
    ++tally.intervals;
    const double rounding = 1e-9 * std::fabs(truth);  // of a setting without noise
    tally.covered += finding.ci_low <= truth + rounding && truth - rounding <= finding.ci_high;
  };
  const double begin = processor_seconds();
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> workers;
  for (size_t worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      for (size_t i = worker; i < seeds.size(); i += threads) {
        if (i >= kFewestRuns && processor_seconds() - begin > seconds) return;
        take(setting.run(seeds[i]));
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  tally.seconds = processor_seconds() - begin;
  return tally;
}

}  // namespace tycho::analyzer
