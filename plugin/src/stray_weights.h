#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace tycho {

/// Finds weights that operators use, that belong to no module of the model, and that nothing
/// trains: made in a constructor or a list and never registered. Such a network learns around them.
/// They are told from the weights of other networks, which change, and from inputs that need
/// gradients, which stand elsewhere in the operators: a leaf in a weight's place, that a gradient
/// reaches, and whose entries are the same in a few observed steps in a row. Costs nothing where
/// there are none; otherwise a pass over each in those steps.
class StrayWeights {
 public:
  /// An operator takes a leaf that needs a gradient and is none of the model's parameters.
  void used(std::string_view operator_name, size_t position, const at::Tensor& leaf);
  /// After a step. What there is to say, once.
  std::optional<std::string> end_step();

 private:
  struct Stray {
    c10::weak_intrusive_ptr<c10::TensorImpl> alive;
    std::string operator_name;
    at::Tensor sums;  // sum and sum of squares when it was last seen
    int unchanged = 0;
    bool in_step = false;
    bool trained = false;
  };
  std::unordered_map<const c10::TensorImpl*, Stray> strays_;
  bool said_ = false;
};

}  // namespace tycho
