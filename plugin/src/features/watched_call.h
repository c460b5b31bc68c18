#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstddef>
#include <string>
#include <vector>

#include "layer_operators.h"

namespace tycho {

struct ParameterArgument : ParameterUse {
  std::string why_not;  ///< not empty: what the operator does with the parameter cannot be told
};

/// An operator of the probe loss, from before it runs until what it gives has been looked at.
struct WatchedCall {
  std::string name;  ///< for example aten::linear
  std::vector<ParameterArgument> parameters;
  std::vector<c10::IValue> arguments;  ///< all of them; empty where no parameter is among them
};

/// Calls `look(tensor, position, in_list)` for each tensor among an operator's arguments or
/// results, those in lists too; undefined ones are left out.
template <typename Values, typename Look>
void each_tensor(const Values& values, Look look) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].isTensor() && values[i].toTensor().defined()) {
      look(values[i].toTensor(), i, false);
    }
    if (!values[i].isTensorList()) continue;
    for (const at::Tensor& tensor : values[i].toTensorVector()) {
      if (tensor.defined()) look(tensor, i, true);
    }
  }
}

/// Whether both are there and lie in the same memory.
inline bool shares_storage(const at::Tensor& left, const at::Tensor& right) {
  return left.defined() && right.defined() && left.has_storage() && right.has_storage() &&
         left.storage().unsafeGetStorageImpl() == right.storage().unsafeGetStorageImpl();
}

}  // namespace tycho
