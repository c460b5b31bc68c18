#pragma once

#include <cstddef>
#include <vector>

namespace tycho::analyzer {

/// A point of a run: its learning rate, and the loss that was observed there.
struct LossCurvePoint {
  double step = 0;
  double rate = 0;   ///< learning rate
  double sum = 0;    ///< of the learning rates of all steps up to here, warm-up included
  double loss = 0;   ///< mean over the observations of the point; NaN: only the rate is known
  double error = 0;  ///< standard error of ln(loss) by the noise of batches alone
};

/// By ascending step, from the end of the warm-up on.
using LossCurve = std::vector<LossCurvePoint>;

}  // namespace tycho::analyzer
