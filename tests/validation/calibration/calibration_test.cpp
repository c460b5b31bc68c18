// Rates of verdicts and coverage of intervals, over fresh seeds at every run. The seed is printed;
// TYCHO_CALIBRATION_SEED repeats it, TYCHO_CALIBRATION_RUNS sets the runs of each setting.
// With TYCHO_VALIDATION_DOCUMENT=FILE what was measured is written there, and nothing else is:
// the target validation_document does it, with 200 runs, for docs/validation.md.
#include "calibration/calibration.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>

#include "calibration/interval_coverage.h"

namespace tycho::analyzer {
namespace {

constexpr double kFalseAlarms = 0.05;  // largest share
constexpr double kCoverage = 0.95;
constexpr int kRuns = 20;  // of each setting in CI

/// How far a share out of `runs` may be from `share` by chance: 3.3 standard deviations, 1 in 2000.
double slack(double share, int runs) {
  return 3.3 * std::sqrt(share * (1 - share) / runs) + 0.5 / runs;
}

int number_from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

uint64_t base_seed() {
  static const uint64_t kSeed = [] {
    const char* text = std::getenv("TYCHO_CALIBRATION_SEED");
    return text == nullptr ? std::random_device{}() : std::strtoull(text, nullptr, 10);
  }();
  return kSeed;
}

std::string rerun() { return fmt::format("TYCHO_CALIBRATION_SEED={}", base_seed()); }

struct Tally {
  int runs = 0;
  int holds = 0;
  int violated = 0;
  int underpowered = 0;
  int intervals = 0;  ///< with a known truth and finite
  int covered = 0;
  int other() const { return runs - holds - violated - underpowered; }
};

Tally measure(const CalibrationCase& setting, int runs) {
  Tally tally;
  tally.runs = runs;
  std::seed_seq sequence{static_cast<uint32_t>(base_seed()),
                         static_cast<uint32_t>(std::hash<std::string>{}(setting.law)),
                         static_cast<uint32_t>(std::hash<std::string>{}(setting.setting))};
  std::vector<uint32_t> seeds(static_cast<size_t>(runs));
  sequence.generate(seeds.begin(), seeds.end());
  std::mutex mutex;
  const auto take = [&](const Finding& finding) {
    const std::lock_guard<std::mutex> lock(mutex);
    tally.holds += finding.verdict == Verdict::kHolds;
    tally.violated += finding.verdict == Verdict::kViolated;
    tally.underpowered += finding.verdict == Verdict::kUnderpowered;
    const double truth = setting.predicted_is_true ? finding.predicted : setting.truth;
    if (!std::isfinite(truth) || !(finding.ci_low > -1e300 && finding.ci_high < 1e300)) return;
    ++tally.intervals;
    const double rounding = 1e-9 * std::fabs(truth);  // of a setting without noise
    tally.covered += finding.ci_low <= truth + rounding && truth - rounding <= finding.ci_high;
  };
  const size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> workers;
  for (size_t worker = 0; worker < threads; ++worker) {
    workers.emplace_back([&, worker] {
      for (size_t i = worker; i < seeds.size(); i += threads) take(setting.run(seeds[i]));
    });
  }
  for (std::thread& worker : workers) worker.join();
  return tally;
}

void check(const CalibrationCase& setting, const Tally& tally) {
  SCOPED_TRACE(fmt::format("{}: {}; {}", setting.law, setting.setting, rerun()));
  const double most_wrong = tally.runs * (kFalseAlarms + slack(kFalseAlarms, tally.runs));
  const double least_right = tally.runs * (setting.power - slack(setting.power, tally.runs));
  switch (setting.expected) {
    case Expected::kHolds:
      EXPECT_LE(tally.violated, most_wrong);
      EXPECT_GE(tally.holds, least_right);
      break;
    case Expected::kViolated:
      EXPECT_LE(tally.holds, most_wrong);
      EXPECT_GE(tally.violated, least_right);
      break;
    case Expected::kSilent:
      EXPECT_LE(tally.holds + tally.violated, most_wrong);
      break;
  }
  if (tally.intervals == 0) return;
  EXPECT_GE(tally.covered, tally.intervals * (kCoverage - slack(kCoverage, tally.intervals)));
}

class Document {
 public:
  Document() {
    const char* path = std::getenv("TYCHO_VALIDATION_DOCUMENT");
    if (path != nullptr) file_.open(path);
  }
  bool wanted() const { return file_.is_open(); }
  template <typename... Arguments>
  void write(fmt::format_string<Arguments...> text, Arguments&&... arguments) {
    if (wanted()) file_ << fmt::format(text, std::forward<Arguments>(arguments)...);
  }

 private:
  std::ofstream file_;
};

Document& document() {
  static Document document;
  return document;
}

const char* expectation(Expected expected) {
  switch (expected) {
    case Expected::kHolds:
      return "holds";
    case Expected::kViolated:
      return "fails";
    case Expected::kSilent:
      return "no verdict";
  }
  return "";
}

void measure_intervals() {
  const int series = number_from_environment("TYCHO_CALIBRATION_RUNS", kRuns) * 10;
  document().write(
      "# Validation\n\nHow often the judge is right where the truth is known. Written by\n"
      "`cmake --build build/release --target validation_document`, with fresh seeds at every run "
      "(this one:\n`{}`); no number in it is from elsewhere. CI runs the same settings with fewer "
      "seeds\nand fails where a rate is worse than stated by more than chance.\n\n",
      rerun());
  document().write(
      "## Intervals\n\nCoverage of the intervals that laws take from series "
      "(`BlockAverages`), {} series a cell. Correlation is that of\nneighbours in an underlying "
      "Gaussian autoregressive process; the lognormal one is its exponential (skewness 6.2), the "
      "ratio\nis of the means of two independent squares (skewness 2.8). In brackets the share of "
      "series with a finite interval: where the\ncorrelation time cannot be told from the series, "
      "or the denominator from 0, there is none, which counts as covered. Known\nlimit: a slow "
      "part that is hidden under noise is not seen in a series of a few of its correlation times; "
      "laws that know of\none (the relaxation time of a norm, momentum) demand 8 of it.\n\n",
      series);
  constexpr std::array<int, 6> kLengths = {16, 32, 64, 128, 256, 1000};
  uint64_t stream = 0;
  for (const double confidence : {0.95, 0.99}) {
    document().write("Nominal {} %:\n\n| series | correlation |", 100 * confidence);
    for (const int length : kLengths) document().write(" n = {} |", length);
    document().write("\n|---|---|");
    for (size_t i = 0; i < kLengths.size(); ++i) document().write("---|");
    document().write("\n");
    for (const SeriesKind kind :
         {SeriesKind::kNormal, SeriesKind::kLogNormal, SeriesKind::kSquaredRatio}) {
      for (const double correlation : {0.0, 0.5, 0.9, 0.98}) {
        document().write("| {} | {} |", to_string(kind), correlation);
        for (const int length : kLengths) {
          const IntervalCoverage cell = interval_coverage(kind, correlation, length, confidence,
                                                          series, base_seed() + ++stream);
          document().write(" {:.3f} [{:.2f}] |", cell.covered(),
                           static_cast<double>(cell.bounded) / series);
          SCOPED_TRACE(fmt::format("{} {} n {} nominal {}; {}", to_string(kind), correlation,
                                   length, confidence, rerun()));
          // What short and skewed series lose is stated: at most 3 % of 95, 3 % of 99.
          EXPECT_GE(cell.covered(), confidence - 0.03 - slack(confidence - 0.03, series));
          if (kind == SeriesKind::kNormal && correlation <= 0.5 && length >= 128) {
            EXPECT_GT(cell.bounded, 0.85 * series) << "no power";
            EXPECT_LT(cell.width, 1.5);
          }
        }
        document().write("\n");
      }
    }
    document().write("\n");
  }
}

// One test, since the document is written in order.
TEST(CalibrationTest, IntervalsCoverAndVerdictsAreRightAtTheirRates) {
  measure_intervals();
  const int runs = number_from_environment("TYCHO_CALIBRATION_RUNS", kRuns);
  std::vector<CalibrationCase> cases = calibration_cases();
  std::stable_sort(
      cases.begin(), cases.end(),
      [](const CalibrationCase& a, const CalibrationCase& b) { return a.law < b.law; });
  document().write(
      "## Verdicts\n\n{} runs of each setting. \"Theory\" says whether the law is known to hold "
      "in it, to fail, or has no say. \"Other\" is\nNOT_YET, NOT_APPLICABLE and NOT_MEASURED. The "
      "last column is the share of the finite 95 % intervals that hold the truth,\nwhere it is "
      "known, and their number.\n\n| law | setting | theory | HOLDS | VIOLATED | UNDERPOWERED | "
      "other | coverage |\n|---|---|---|---|---|---|---|---|\n",
      runs);
  for (const CalibrationCase& setting : cases) {
    const Tally tally = measure(setting, runs);
    check(setting, tally);
    document().write(
        "| {} | {} | {} | {} | {} | {} | {} | {} |\n", setting.law, setting.setting,
        expectation(setting.expected), tally.holds, tally.violated, tally.underpowered,
        tally.other(),
        tally.intervals == 0
            ? std::string("-")
            : fmt::format("{:.3f} of {}", static_cast<double>(tally.covered) / tally.intervals,
                          tally.intervals));
  }
}

}  // namespace

std::vector<CalibrationCase>& calibration_cases() {
  static std::vector<CalibrationCase> cases;
  return cases;
}

CalibrationCases::CalibrationCases(std::vector<CalibrationCase> cases) {
  for (CalibrationCase& setting : cases) calibration_cases().push_back(std::move(setting));
}

}  // namespace tycho::analyzer
