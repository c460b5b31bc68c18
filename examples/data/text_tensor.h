#pragma once

#include <torch/torch.h>

#include <cstdint>

#include "data/text.h"

namespace tycho::examples {

/// A text as a tensor of indices into its alphabet.
struct Symbols {
  torch::Tensor all;  ///< int64 [symbols]
  int64_t alphabet = 0;
};

/// This repository's own text, read at the first call. Thread-safe.
inline const Symbols& own_text() {
  static const Symbols symbols = [] {
    const Text text = load_text("");
    return Symbols{torch::tensor(text.symbols), static_cast<int64_t>(text.alphabet.size())};
  }();
  return symbols;
}

}  // namespace tycho::examples
