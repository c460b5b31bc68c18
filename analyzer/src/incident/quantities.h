#pragma once

#include <vector>

#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// A recorded quantity whose movement may be the first sign that a run goes wrong.
struct Quantity {
  /// How its values are compared.
  enum class Scale {
    kLogarithm,  ///< ln of it
    kRoot,       ///< ln of its root: it is recorded as a square
    kPlain,      ///< itself
  };
  const char* id;         ///< stable: "update_size"
  const char* words;      ///< "the norm of the gradient"
  const char* note;       ///< what its value means; empty: nothing to add
  const char* statistic;  ///< what is recorded, and the chart that shows it
  const char* divisor;    ///< the statistic that it is divided by; empty: none
  v1::Scope scope;
  Scale scale;
  /// The least change that counts, on its scale: below it nothing is said to have moved.
  double least;
  bool rises_only;  ///< a fall is no sign: a learning rate that is lowered
};

/// All that are watched. The first one is the loss.
const std::vector<Quantity>& watched_quantities();

/// A recorded value on the scale of its quantity. Infinity where it is not finite or, with a
/// divisor, the quotient is not; -100 stands for the logarithm of 0 and of less. Plain values are
/// bounded by +-3e38.
double on_scale(const Quantity& quantity, double value);
/// Back from the scale: what people read. A root stays a root: the norm, not its square.
double from_scale(const Quantity& quantity, double scaled);

}  // namespace tycho::analyzer
