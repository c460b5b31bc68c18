#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "example_gradients.h"
#include "per_example/recurrent.h"
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
  /// Not empty: why it is not known where the examples lie. An experiment may tell.
  std::string why_no_rows;
  tape::ValueId value = tape::kNoValue;  // of its output
  at::Tensor output_gradient;            // kept until then
  bool input_changed() const {
    return std::any_of(versions.begin(), versions.end(),
                       [](const auto& entry) { return entry.first._version() != entry.second; });
  }
  size_t operand() const { return per_example::operand(use); }
};

struct ExampleGradients::Recurrent {
  struct Weight {
    uint32_t id = 0;
    size_t index = 0;  // of the layer's weights
    per_example::View view;
  };
  per_example::Recurrence call;
  std::string name;
  std::vector<Weight> weights;
  std::vector<std::pair<at::Tensor, uint32_t>> versions;
  per_example::Batch batch;
  std::array<at::Tensor, 3> output_gradients;
  bool contributed = false;
  std::string why_no_rows;
  tape::ValueId value = tape::kNoValue;

  bool holds(uint32_t id) const {
    return std::any_of(weights.begin(), weights.end(),
                       [&](const Weight& weight) { return weight.id == id; });
  }
};

/// What an experiment is to tell, or to confirm, of what an operator put out.
struct ExampleGradients::RowsOfUse {
  tape::RowsWanted output;
  rows::Layout layout;  // what operators are known to do says so; else without rows
};

/// A gradient that was delivered, and what waits for an experiment.
struct ExampleGradients::Waiting {
  std::vector<per_example::Part> parts;
  std::vector<std::shared_ptr<Applied>> applied;
  std::vector<std::shared_ptr<Recurrent>> recurrent;
  at::Tensor delivered;
  int64_t uses = 0;
};

struct ExampleGradients::Parameter {
  at::Tensor tensor;
  uint32_t layer = 0;
  int64_t uses = 0;                      // in forward passes since its last gradient
  std::string unrecognised;              // why a use since its last gradient is not exact
  std::string unsound;                   // why what lies behind it does not keep examples apart
  std::vector<per_example::Part> parts;  // of the current backward pass
  std::vector<std::shared_ptr<Recurrent>> recurrent;  // uses since its last gradient
  std::vector<std::pair<per_example::View, per_example::Projection>> projections;
  std::vector<at::Tensor> norms;
  std::vector<int64_t> sizes;
  std::vector<std::pair<at::Tensor, double>> open_checks;  // error over scale, and what it may be
  std::string why_not;                                     // of the step
  std::string why_no_rows;  // of the step: exact if an experiment says so
  std::vector<RowsOfUse> rows;
  std::vector<std::shared_ptr<Applied>> open;  // of the current backward pass
  std::optional<Waiting> waiting;
  bool asks = false;  // an experiment

  /// The same for the same view in one step. `seed`: of the step.
  const per_example::Projection& projection(const per_example::View& view,
                                            const at::Tensor& argument, uint64_t seed);

  void forget_step() {
    uses = 0;
    unrecognised.clear();
    unsound.clear();
    parts.clear();
    recurrent.clear();
    projections.clear();
    norms.clear();
    sizes.clear();
    open_checks.clear();
    why_not.clear();
    why_no_rows.clear();
    rows.clear();
    open.clear();
    waiting.reset();
    asks = false;
  }
};

}  // namespace tycho
