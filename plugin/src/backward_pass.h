#pragma once

#include <cstdint>

namespace tycho {

/// A number for the backward pass that runs on this thread, another for each pass; 0: none runs. To
/// be called from hooks. Where a pass runs within a node of another (checkpointing), each has its
/// own.
uint64_t current_backward_pass();

}  // namespace tycho
