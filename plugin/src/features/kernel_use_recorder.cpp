#include "features/kernel_use_recorder.h"

#include <ATen/ATen.h>

#include <utility>

#include "features/edge_gradients.h"
#include "operator_arguments.h"

namespace tycho {

void KernelUseRecorder::before(const WatchedCall& call, c10::ArrayRef<const c10::IValue> inputs,
                               const BatchRecorder& batch) {
  added_.reset();
  if (positions_.empty()) return;
  if ((call.name != "aten::add" && call.name != "aten::add_") || inputs.size() < 3 ||
      !is_one(inputs[2])) {
    return;
  }
  for (size_t i = 0; i < 2; ++i) {
    if (!inputs[i].isTensor() || !inputs[1 - i].isTensor()) continue;
    const at::Tensor tensor = inputs[i].toTensor();
    const auto use = positions_.find(tensor);
    if (!use || !batch.carries(inputs[1 - i].toTensor())) continue;
    Added added{*use, {call.name, {}, i, tensor.detach()}};
    for (const c10::IValue& input : inputs) {
      added.sum.arguments.push_back(input.isTensor() ? c10::IValue(input.toTensor().detach())
                                                     : input);
    }
    added_ = std::move(added);
    return;
  }
}

void KernelUseRecorder::after(const at::Tensor& output) {
  auto added = std::exchange(added_, std::nullopt);
  if (!added) return;
  KernelUse& use = uses_[added->use];
  use.sum = std::move(added->sum);
  use.edge = edge_of(output);
}

void KernelUseRecorder::record(const WatchedCall& call, const at::Tensor& output,
                               const BatchRecorder& batch) {
  for (const ParameterArgument& parameter : call.parameters) {
    KernelUse use;
    use.parameter = parameter.parameter;
    use.why_not = parameter.why_not;
    use.use = {call.name, {}, parameter.position, parameter.argument.detach()};
    for (const c10::IValue& argument : call.arguments) {
      use.use.arguments.push_back(argument.isTensor() && argument.toTensor().defined()
                                      ? c10::IValue(argument.toTensor().detach())
                                      : argument);
    }
    use.edge = edge_of(output);
    if (call.name == "aten::embedding" && parameter.position == 0 && call.arguments.size() > 1 &&
        call.arguments[1].isTensor() && !batch.carries(call.arguments[1].toTensor())) {
      positions_.set(output, uses_.size());
    }
    uses_.push_back(std::move(use));
  }
}

void KernelUseRecorder::protect(const at::Tensor& target) {
  for (KernelUse& use : uses_) {
    for (c10::IValue& argument : use.use.arguments) {
      if (argument.isTensor() && shares_storage(argument.toTensor(), target)) {
        argument = argument.toTensor().clone();
      }
    }
  }
}

std::vector<KernelUse> KernelUseRecorder::take() {
  added_.reset();
  positions_.clear();
  return std::exchange(uses_, {});
}

}  // namespace tycho
