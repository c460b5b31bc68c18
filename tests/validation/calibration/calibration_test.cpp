// Rates of verdicts and coverage of intervals, over fresh seeds at every run. The seed is printed;
// TYCHO_CALIBRATION_SEED repeats it, TYCHO_CALIBRATION_RUNS sets the runs of each setting: 200 are
// all that it names, which are fewer where a run takes long. TYCHO_CALIBRATION_SECONDS ends a
// setting after so much processor time, TYCHO_CALIBRATION_LAW leaves out other laws.
// With TYCHO_VALIDATION_DOCUMENT=FILE what was measured is written there, and nothing else is:
// the target validation_document does it, with 200 runs or 3 s, for docs/validation.md.
#include "calibration/calibration.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <random>

#include "calibration/closed_form.h"
#include "calibration/interval_coverage.h"

namespace tycho::analyzer {
namespace {

constexpr double kFalseAlarms = 0.05;  // largest share
constexpr int kRuns = 20;              // in CI, of a setting of kAllRuns
constexpr int kAllRuns = 200;
constexpr int kFewestRuns = 2;

int number_from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

int runs_of(const CalibrationCase& setting) {
  const int wanted = number_from_environment("TYCHO_CALIBRATION_RUNS", kRuns);
  return std::max(kFewestRuns, setting.runs * wanted / kAllRuns);
}

uint64_t base_seed() {
  static const uint64_t kSeed = [] {
    const char* text = std::getenv("TYCHO_CALIBRATION_SEED");
    return text == nullptr ? std::random_device{}() : std::strtoull(text, nullptr, 10);
  }();
  return kSeed;
}

std::string rerun() { return fmt::format("TYCHO_CALIBRATION_SEED={}", base_seed()); }

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
    case Expected::kUnseen:
      break;
  }
  if (tally.intervals == 0) return;
  EXPECT_GE(tally.covered,
            tally.intervals * (setting.coverage - slack(setting.coverage, tally.intervals)));
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
    case Expected::kUnseen:
      return "fails, unseen";
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

std::string coverage_text(const Tally& tally) {
  if (tally.intervals == 0) return "-";
  return fmt::format("{:.3f} of {}", static_cast<double>(tally.covered) / tally.intervals,
                     tally.intervals);
}

/// Without those of other laws where TYCHO_CALIBRATION_LAW names one.
template <typename T>
std::vector<T> by_law(std::vector<T> all) {
  if (const char* law = std::getenv("TYCHO_CALIBRATION_LAW")) {
    all.erase(std::remove_if(all.begin(), all.end(), [&](const T& a) { return a.law != law; }),
              all.end());
  }
  std::stable_sort(all.begin(), all.end(), [](const T& a, const T& b) { return a.law < b.law; });
  return all;
}

/// All settings of one kind together.
void write_sums(const std::array<Tally, 4>& sums) {
  const auto [holds, fails, silent, unseen] = sums;
  Tally all;
  for (const Tally& kind : sums) all.add(kind);
  const auto share = [](int part, int of) { return 100.0 * part / std::max(1, of); };
  document().write(
      "\nTogether: of {} runs in which theory holds {:.1f} % say HOLDS and {:.2f} % VIOLATED "
      "(false "
      "alarms); of {} in\nwhich it fails {:.1f} % say VIOLATED (power) and {:.2f} % HOLDS "
      "(misses); "
      "of {} in which nothing can be known {:.2f} %\nsay one of the two. Coverage: {}. Not "
      "counted: {} runs in which it fails unseen, as no statistic shows it.\n",
      holds.runs, share(holds.holds, holds.runs), share(holds.violated, holds.runs), fails.runs,
      share(fails.violated, fails.runs), share(fails.holds, fails.runs), silent.runs,
      share(silent.holds + silent.violated, silent.runs), coverage_text(all), unseen.runs);
}

void measure_verdicts() {
  document().write(
      "## Verdicts\n\n\"Theory\" says whether the law is known to hold in a setting, to fail, or "
      "has no say; \"fails, unseen\" is a known limit. \"Other\" is NOT_YET,\nNOT_APPLICABLE and "
      "NOT_MEASURED. The last column is the "
      "share of the finite 95 % intervals that hold the truth,\nwhere it is known, and their "
      "number. Where a run takes long there are fewer. `incident_order` is no law but what\nthe "
      "report says moved first where the loss went wrong: HOLDS where it names what did, VIOLATED "
      "where it names\nsomething else for sure.\n\n"
      "| law | setting | theory | runs | HOLDS | VIOLATED | UNDERPOWERED | other | coverage |\n"
      "|---|---|---|---|---|---|---|---|---|\n");
  const double seconds = number_from_environment("TYCHO_CALIBRATION_SECONDS", 1000000);
  std::array<Tally, 4> sums;
  for (const CalibrationCase& setting : by_law(calibration_cases())) {
    const Tally tally = measure(setting, runs_of(setting), seconds, base_seed());
    check(setting, tally);
    sums[static_cast<size_t>(setting.expected)].add(tally);
    if (!document().wanted()) continue;
    document().write("| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", setting.law,
                     setting.setting, expectation(setting.expected), tally.runs, tally.holds,
                     tally.violated, tally.underpowered, tally.other(), coverage_text(tally));
    fmt::print("{:7.2f} s  {} runs  {}: {}\n", tally.seconds, tally.runs, setting.law,
               setting.setting);
    std::fflush(stdout);
  }
  write_sums(sums);
}

/// For a cell of a table.
std::string cell(std::string text) {
  for (size_t i = 0; (i = text.find('|', i)) != std::string::npos; i += 2) text.insert(i, "\\");
  return text;
}

std::string measured_text(const Finding& finding) {
  std::string text = fmt::format("{:.5g}", finding.measured);
  if (std::isfinite(finding.ci_low + finding.ci_high))
    text += fmt::format(" [{:.5g}, {:.5g}]", finding.ci_low, finding.ci_high);
  return text;
}

void measure_closed_forms() {
  document().write(
      "\n## Closed forms\n\nOne simulated run each, with a fresh seed: what theory gives in closed "
      "form, or what was published, and what the\nanalyzer makes of the run, with its 95 % "
      "interval "
      "where it has one. The difference is relative where theory does not say 0.\n\n"
      "| law | quantity | closed form or source | theory | measured | difference |\n"
      "|---|---|---|---|---|---|\n");
  uint32_t stream = 0;
  for (const ClosedForm& form : by_law(closed_forms())) {
    SCOPED_TRACE(fmt::format("{}: {}; {}", form.law, form.quantity, rerun()));
    Finding finding;
    // A law that gives no number in one run of 20, say, has three.
    for (int attempt = 0; attempt < 3 && std::isnan(finding.measured); ++attempt) {
      std::seed_seq sequence{static_cast<uint32_t>(base_seed()), ++stream};
      std::vector<uint32_t> seed(1);
      sequence.generate(seed.begin(), seed.end());
      finding = form.run(seed[0]);
    }
    const double scale = form.value != 0 ? std::fabs(form.value) : 1;
    const double difference = (finding.measured - form.value) / scale;
    // Five standard errors.
    const double by_chance = 1.25 * (finding.ci_high - finding.ci_low) / scale;
    EXPECT_LE(std::fabs(difference), std::fmax(form.tolerance, by_chance))
        << finding.measured << " where theory has " << form.value;
    document().write("| {} | {} | {} | {:.5g} | {} | {} |\n", form.law, cell(form.quantity),
                     cell(form.formula), form.value + 0.0, measured_text(finding),
                     form.value != 0 ? fmt::format("{:+.2g} %", 100 * difference)
                                     : fmt::format("{:+.2g}", difference + 0.0));
  }
}

// One test, since the document is written in order.
TEST(CalibrationTest, IntervalsCoverAndVerdictsAreRightAtTheirRates) {
  if (std::getenv("TYCHO_CALIBRATION_LAW") == nullptr) measure_intervals();
  measure_verdicts();
  measure_closed_forms();
}

}  // namespace
}  // namespace tycho::analyzer
