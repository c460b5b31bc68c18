#pragma once

#include <cstdint>
#include <string>

#include "tycho/v1/run.pb.h"

namespace tycho::testing {

/// What a large trace holds.
struct LargeTrace {
  int layers = 1000;
  int64_t steps = 2000;
  int64_t noise_every = 10;     ///< per-example statistics, where a real run thins them too
  int64_t spectrum_every = 50;  ///< singular values
};

/// A transformer of blocks of six layers ("blocks.17.mlp.0"), each with a weight and a bias.
v1::ModelDescription large_model(int layers);

/// Writes a run of a large model with the statistics that a run has by default and with spectral
/// norms: of the run, of each layer and of each parameter. Values are smooth courses with noise of
/// a tenth, other ones for each layer; the gradient of blocks.3.mlp.0 jumps by a thousand at one
/// step, and the activations of blocks.5.mlp.2 become infinite in the second half.
void write_large_run(const std::string& directory, const LargeTrace& what);

}  // namespace tycho::testing
