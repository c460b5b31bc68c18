#pragma once

#include <cstdint>

#include "src/engine/known_run.h"
#include "src/engine/run_ids.h"
#include "tycho/analyzer/engine.h"
#include "tycho/v1/record.pb.h"

namespace tycho::analyzer {

/// Writes a recorded column into the run's, as values of the frame with this number. Values that
/// the column does not have keep what an earlier column of the same frame gave them, or are
/// not_measured(). What cannot be used is counted in `ignored` and not written: the whole column,
/// or, of entities that the segment does not have and of positions from 4096 on, these values only.
/// O(values), a copy where all of the run's entities are there in order; allocates where the column
/// grows.
void store_column(const v1::Column& column, const RunIds& ids, uint64_t frame, KnownRun* run,
                  IgnoredRecords* ignored);

}  // namespace tycho::analyzer
