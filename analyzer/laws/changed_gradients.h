#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/parameter_settings.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// Does the optimizer step with the gradients of backward? Not where they are clipped or changed in
/// between, or where other code writes the weights; laws about what an optimizer does with those
/// gradients do not speak then.
///
/// Known from the session, which says so where it compared them (event
/// `gradient_changed_before_step` or `gradients_changed`), or from plain SGD's own arithmetic:
/// dtheta + eta lambda theta is -eta g. Compared are squared norms and inner products, recorded
/// anyway: the cosine of the two sides within 1e-3, their ratio within 1 %, at steps that rounding
/// leaves alone. Scaling is told from the rest, which may be gradients changed one by one as well
/// as weights written by other code.
class ChangedGradients {
 public:
  void begin(const RunContext& context);
  void observe(const Frame& frame);

  /// That it does not, in words, without a full stop; empty: nothing says so.
  std::string evidence() const;
  /// The arithmetic could be compared at some steps.
  bool tested() const { return steps_ > 0; }

 private:
  const RunContext* context_ = nullptr;
  ColumnIndex gradient_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
  ColumnIndex gradient_update_ = kNoColumn;
  ColumnIndex weight_gradient_ = kNoColumn;
  ColumnIndex weight_update_ = kNoColumn;
  uint64_t settings_version_ = 0;
  std::vector<ParameterSettings> settings_;
  std::vector<double> least_update_;  // squared, over the weight's: below it rounding decides
  uint64_t steps_ = 0;                // on which a parameter could be tested
  uint64_t scaled_ = 0;               // on which one was scaled
  uint64_t turned_ = 0;               // on which one went another way
  double last_factor_ = 1;
};

}  // namespace tycho::analyzer
