#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tape/row_examples.h"

namespace tycho::tape {

/// A number that two tapes share if they call the same operators with the same arguments in the
/// same places, but for the data of the examples (`sources`): of these the sizes and where the
/// examples lie are the same. What RowExamples established of one holds for the other, unless
/// choices were made on the way. 64 bits; nothing where an argument cannot be compared. Costs a
/// microsecond per call, and one pass over what the tape holds.
std::optional<uint64_t> structure_key(const LossTape& tape, const std::vector<RowSource>& sources);

}  // namespace tycho::tape
