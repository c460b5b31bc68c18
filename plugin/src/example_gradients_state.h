#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "example_gradients.h"
#include "per_example/uses.h"

namespace tycho {

struct ExampleGradients::Applied {
  explicit Applied(const AppliedParameter& parameter)
      : id(parameter.parameter), view(parameter.argument) {}

  uint32_t id = 0;
  per_example::Use use;
  per_example::View view;
  std::string why_not;
  per_example::Batch batch;
  std::vector<std::pair<at::Tensor, uint32_t>> versions;
  /// Of a table: the shape of what was looked up, where it is added to the examples.
  std::vector<int64_t> looked_up;
  bool fired = false;
  size_t operand() const { return per_example::operand(use); }
};

struct ExampleGradients::Parameter {
  at::Tensor tensor;
  uint32_t layer = 0;
  int64_t uses = 0;                      // in forward passes since its last gradient
  std::string unrecognised;              // why a use since its last gradient is not exact
  std::string unsound;                   // why what lies behind it does not keep examples apart
  std::vector<per_example::Part> parts;  // of the current backward pass
  std::vector<std::pair<per_example::View, per_example::Projection>> projections;
  std::vector<at::Tensor> norms;
  std::vector<int64_t> sizes;
  std::vector<std::pair<at::Tensor, double>> open_checks;  // error over scale, and what it may be
  std::string why_not;                                     // of the step

  void forget_step() {
    uses = 0;
    unrecognised.clear();
    unsound.clear();
    parts.clear();
    projections.clear();
    norms.clear();
    sizes.clear();
    open_checks.clear();
    why_not.clear();
  }
};

}  // namespace tycho
