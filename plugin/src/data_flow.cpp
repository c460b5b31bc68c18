#include "data_flow.h"

#include <ATen/ATen.h>

#include <vector>

namespace tycho {
namespace {

bool rearranges(std::string_view name, c10::ArrayRef<const c10::IValue> inputs, int64_t batch_dim,
                bool before_model) {
  // The batch itself is put together so.
  if (before_model && (name == "aten::stack" || name == "aten::select" || name == "aten::flip" ||
                       name == "aten::index_select" || name == "aten::unbind")) {
    return false;
  }
  if (name == "aten::einsum" || name == "aten::repeat" || name == "aten::tile" ||
      name == "aten::repeat_interleave" || name == "aten::t" || name == "aten::movedim" ||
      name == "aten::moveaxis" || name == "aten::swapaxes" || name == "aten::swapdims" ||
      name == "aten::numpy_T" || name == "aten::unbind" || name == "aten::roll" ||
      name == "aten::flip" || name == "aten::as_strided") {
    return true;
  }
  const bool list = !inputs.empty() && inputs[0].isTensorList();
  int64_t dims = 0;
  if (list) {
    const auto tensors = inputs[0].toTensorVector();
    dims = tensors.empty() ? 0 : tensors[0].dim() + (name == "aten::stack" ? 1 : 0);
  } else if (!inputs.empty() && inputs[0].isTensor() && inputs[0].toTensor().defined()) {
    dims = inputs[0].toTensor().dim();
  }
  const auto is_batch = [&](size_t i) {
    if (i >= inputs.size() || !inputs[i].isInt()) return false;
    const int64_t dim = inputs[i].toInt();
    return (dim < 0 ? dim + dims : dim) == batch_dim;
  };
  if (name == "aten::transpose" || name == "aten::transpose_") return is_batch(1) || is_batch(2);
  if (name == "aten::cat" || name == "aten::concat" || name == "aten::stack" ||
      name == "aten::select" || name == "aten::index_select") {
    return is_batch(1);
  }
  if (name == "aten::permute" && inputs.size() > 1 && inputs[1].isIntList()) {
    const auto order = inputs[1].toIntVector();
    if (static_cast<int64_t>(order.size()) <= batch_dim) return true;
    const int64_t from = order[static_cast<size_t>(batch_dim)];
    return (from < 0 ? from + dims : from) != batch_dim;
  }
  return false;
}

}  // namespace

bool DataFlow::is_constant(const at::Tensor& tensor) const {
  if (!tensor.has_storage()) return false;
  const auto found = constants_.find(tensor.storage().unsafeGetStorageImpl());
  return found != constants_.end() && !found->second.expired();
}

bool DataFlow::carries(const at::Tensor& tensor) const {
  return tensor.defined() && !is_parameter_(tensor) && !is_constant(tensor);
}

// Of a tensor that is more than a number.
bool DataFlow::carries_data(const at::Tensor& tensor) const {
  return carries(tensor) &&
         !(tensor.dim() == 0 && tensor.unsafeGetTensorImpl()->is_wrapped_number());
}

bool DataFlow::before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
                      int64_t batch_dim, bool before_model) {
  // What is drawn at random is taken for an input (the noise of a generator).
  // Memory that is not initialised is filled by the program.
  output_is_constant_ = name.find("empty") == std::string_view::npos &&
                        name.find("rand") == std::string_view::npos &&
                        name.find("normal") == std::string_view::npos &&
                        name.find("bernoulli") == std::string_view::npos;
  for (const c10::IValue& input : inputs) {
    if (input.isTensor()) {
      output_is_constant_ = output_is_constant_ && !carries_data(input.toTensor());
    } else if (input.isTensorList()) {
      for (const at::Tensor& tensor : input.toTensorVector()) {
        output_is_constant_ = output_is_constant_ && !carries_data(tensor);
      }
    }
  }
  return !output_is_constant_ && rearranges(name, inputs, batch_dim, before_model);
}

void DataFlow::note(const at::Tensor& output) {
  if (!output.defined() || !output.has_storage() || is_parameter_(output)) return;
  const auto* storage = output.storage().unsafeGetStorageImpl();
  if (output_is_constant_) {
    constants_.insert_or_assign(storage, output.storage().getWeakStorageImpl());
  } else if (!constants_.empty()) {
    constants_.erase(storage);  // Data were written into it, or its address is used again.
  }
}

void DataFlow::after(const std::vector<c10::IValue>& results) {
  for (const c10::IValue& result : results) {
    if (result.isTensor()) note(result.toTensor());
    if (result.isTensorList()) {
      for (const at::Tensor& tensor : result.toTensorVector()) note(tensor);
    }
  }
}

}  // namespace tycho
