#pragma once

#include <cstdint>
#include <string>

#include "src/statistics/block_averages.h"
#include "tycho/analyzer/law.h"

namespace tycho::analyzer {

/// Three significant digits, without an exponent from 0.001 to a million: 1430, 0.0123, 2.5e7.
std::string format_number(double value);

/// Steps from one to the other. Those of a file may lie further apart than an integer can say.
double steps_between(int64_t from, int64_t to);

/// "1430 [1210, 1700]".
std::string format_interval(double value, double low, double high);

/// "only 3 observations", "only 1 observation", "no observation".
std::string only_observations(uint64_t count);

/// A finding of `law` with the fields that do not depend on data.
Finding start_finding(const LawDescription& law, std::string scope);

/// Takes over value and interval.
void set_measured(Finding& finding, const Estimate& estimate);

/// Judges a ratio that theory says is 1, within a factor 1 + tolerance, with its p-value. A trend
/// of both sides widens the interval without harm where single observations agree: `distance`,
/// their mean distance relative to the prediction, within the tolerance then is enough to hold.
void judge_ratio(Finding& finding, const Estimate& ratio, double tolerance, double distance);

/// Sets the verdict, with the importance that goes with it.
void set_verdict(Finding& finding, Verdict verdict);

/// NOT_APPLICABLE because of `gate`: numbers, advice and p-value of what was not judged are taken
/// away.
void set_not_applicable(Finding& finding, std::string gate);

}  // namespace tycho::analyzer
