#pragma once

#include <string>

#include "src/statistics/block_averages.h"
#include "tycho/analyzer/law.h"

namespace tycho::analyzer {

/// Three significant digits, without an exponent from 0.001 to a million: 1430, 0.0123, 2.5e+07.
std::string format_number(double value);

/// "1430 [1210, 1700]".
std::string format_interval(double value, double low, double high);

/// A finding of `law` with the fields that do not depend on data.
Finding start_finding(const LawDescription& law, std::string scope);

/// Takes over value and interval.
void set_measured(Finding& finding, const Estimate& estimate);

/// Sets the verdict, with the importance that goes with it.
void set_verdict(Finding& finding, Verdict verdict);

}  // namespace tycho::analyzer
