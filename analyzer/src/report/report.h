#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "decisions/decision.h"
#include "series_store.h"
#include "src/incident/incident.h"
#include "src/loss/loss_course.h"
#include "tycho/analyzer/engine.h"
#include "tycho/trace/run_reader.h"
#include "verdict_times.h"

namespace tycho::analyzer {

/// The spectral density of the Hessian as measured last: nodes and weights of a quadrature.
struct Spectrum {
  int64_t step = -1;  ///< -1: never measured
  std::vector<double> node;
  std::vector<double> weight;
};

/// Everything a report shows, read in one pass with memory that does not grow with the trace.
struct Report {
  std::string path;
  v1::RunDescription run;
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  v1::OptimizerSettings settings;  ///< those used last
  std::vector<LawDescription> laws;
  std::vector<Finding> findings;    ///< by importance
  std::vector<Decision> decisions;  ///< by gain
  std::vector<v1::Event> events;
  v1::Health health;
  std::vector<trace::SegmentInfo> segments;
  std::vector<trace::SkippedRegion> skipped;
  SeriesStore series;
  LossCourse loss;
  std::vector<Incident> incidents;  ///< where the loss went wrong, by step
  VerdictTimes verdict_times;
  Spectrum spectrum;
  int64_t first_step = -1;
  int64_t last_step = -1;
  uint64_t frames = 0;
  uint64_t other_reference = 0;  // IgnoredRecords
  uint64_t bytes = 0;

  bool has_loss() const {
    return !trace::losses(segments, skipped).empty() || health.messages_dropped() > 0;
  }
  const LawDescription* law(const std::string& id) const;
  /// The layer with its kind: layer_name().
  std::string layer_label(uint32_t id) const;
};

/// `progress` is told the number of frames now and then; may be empty.
Result<Report> read_report(const std::string& path,
                           const std::function<void(uint64_t frames)>& progress);

/// The findings a reader should see first: those that ask for something to be done. None where the
/// run is broken: what was measured of it is no ground for advice.
std::vector<const Finding*> what_to_do(const Report& report);

/// Titles of the laws with these ids, separated by commas.
std::string titles_of(const Report& report, const std::vector<std::string>& laws);

std::string text_report(const Report& report, bool colour, int width);
std::string json_report(const Report& report);
/// One file that needs no network.
std::string html_report(const Report& report);

/// "1.23e-4", "0.5", "not known".
std::string short_number(double value);
/// What may be shown of a finding as a number: not where theory does not speak about the run, for
/// there is nothing to compare.
bool shows_numbers(const Finding& finding);
/// Measured value with its interval and the prediction, in words; empty where nothing was measured
/// or shows_numbers() is false.
std::string evidence(const Finding& finding);

}  // namespace tycho::analyzer
