#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// What an operator of a layer put out, or what followed from it by sums and scaling.
struct LayerOutput {
  uint32_t layer = 0;
  uint64_t call = 0;
  std::string made_by;  // operator
  at::Tensor sum, square_sum;
  int64_t elements = 0;
  std::optional<int64_t> unit;  // dimension
  at::Tensor largest;           // of each unit, behind a ReLU
  bool units_unknown = false;   // a ReLU follows

  // In backward.
  uint64_t arrived = 0;  // last pass in which a gradient came back to it
  at::Tensor gradient_square_sum;
  int64_t gradient_elements = 0;
  uint64_t counted = 0;  // pass in which it is part of the step
  bool several_passes = false;

  // Of modules of the program's own.
  std::vector<std::shared_ptr<LayerOutput>> parents;  // it is their sum, or one of them scaled
  bool inner = false;                                 // goes into another operator of its module
  bool used_as_is = false;
  std::string arithmetic;  // an operator behind it that may be the module's own
  std::weak_ptr<LayerOutput> scaled;
  std::string why_not;

  void set_inner() {
    inner = true;
    for (const auto& parent : parents) parent->set_inner();
  }
};

/// The operators that run from one use of a module's parameters to the next use of the same.
struct ModuleCall {
  std::set<uint32_t> parameters;
  std::string signature;
  int products = 0;
};

/// What one layer put out in a step.
struct LayerOutputs {
  std::vector<std::shared_ptr<LayerOutput>> outputs;
  std::vector<ModuleCall> calls;
  std::string why_not;  // an operator that has parameters of two layers, or returns no tensor
  bool frozen = false;  // an operator used it, and none of its parameters trains
  std::map<uint32_t, uint64_t> delivered;  // pass in which a parameter's gradient came
};

struct ActivationNotObserved {
  uint32_t layer = 0;
  std::string what;  ///< activations, or one statistic of them
  std::string why;
};

/// Sums over the outputs of a layer that count; what cannot be told is added to `not_observed`.
void sum_outputs(const LayerOutputs& outputs, const LayerInfo& layer, bool gradients,
                 double loss_scale, LayerObservation* observed,
                 std::vector<ActivationNotObserved>* not_observed);

}  // namespace tycho
