#pragma once

#include <vector>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// Benjamini-Hochberg at 5 % over the findings that have a p-value: a violation that does not
/// survive becomes UNDERPOWERED and says so. Give it the findings of one law below the scope of the
/// whole.
void control_false_discoveries(const std::vector<Finding*>& findings);

}  // namespace tycho::analyzer
