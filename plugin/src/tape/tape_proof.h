#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "tape/loss_tape.h"

namespace tycho::tape {

/// What the trainer's own step gave, at the parameters that the tape now stands at.
struct Expected {
  double loss = 0;
  /// By parameter, as `parameters` of the proof; undefined: not known.
  std::vector<at::Tensor> gradients;
};

/// Whether a tape is the loss that was minimised: one replay with its gradient, held against the
/// trainer's. Equal to rounding: |l - l'| <= e |l|, and for each parameter |g - g'| <=
/// e (|g| + |all gradients| / 10), with e = 1e-5 in float32, 1e-11 in float64, 2e-2 in narrower
/// types. Empty: it is; else why not, in words for the user.
std::string disproof(const LossTape& tape, const std::vector<at::Tensor>& parameters,
                     const Expected& expected);

/// The same of the loss alone: one forward pass.
std::string disproof_of_value(const LossTape& tape, double expected);

}  // namespace tycho::tape
