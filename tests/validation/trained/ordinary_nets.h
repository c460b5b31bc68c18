#pragma once

#include <tycho/session_options.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace tycho::validation {

/// A kind of network, trained as people train it.
struct OrdinaryNet {
  std::string name;
  std::string what;  ///< in words, for a table
  /// Trains one with three lines and writes its trace (a GAN writes two) to the directories that it
  /// returns, below `directory`. The seed draws the data's order, the first weights and, within
  /// ordinary ranges, width, depth, rate, batch, regularisation and schedule. The number of steps
  /// is multiplied by `length`.
  std::function<std::vector<std::string>(uint64_t seed, Preset preset, double length,
                                         const std::string& directory)>
      train;
};

/// An MLP, a CNN with batch normalisation, a transformer, an LSTM and a GAN.
const std::vector<OrdinaryNet>& ordinary_nets();

}  // namespace tycho::validation
