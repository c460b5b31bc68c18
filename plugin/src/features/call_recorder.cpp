#include "features/call_recorder.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <exception>
#include <utility>

#include "error_text.h"

namespace tycho {

CallRecorder::CallRecorder(const ModelInfo& model, int64_t batch_dim, bool kernel_uses)
    : map_(model),
      with_kernel_uses_(kernel_uses),
      batch_(&map_, batch_dim),
      layers_(model, &map_) {}

void CallRecorder::begin(bool attention) {
  (void)end();
  with_attention_ = attention;
  failure_.clear();
  batch_.begin();
}

RecordedCalls CallRecorder::end() {
  call_ = {};
  RecordedCalls result;
  LayerUseRecorder::Uses layers = layers_.take();
  result.uses = std::move(layers.uses);
  result.edges = std::move(layers.edges);
  result.kernel_uses = kernel_uses_.take();
  result.attention = attention_.take();
  result.batch = batch_.batch();
  result.data = batch_.end();
  return result;
}

bool CallRecorder::before(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  try {
    before_operator(name, inputs);
  } catch (const std::exception& error) {
    failure_ = first_line(error);
  }
  return true;
}

void CallRecorder::after(const std::vector<c10::IValue>& outputs) {
  try {
    after_operator(outputs);
  } catch (const std::exception& error) {
    failure_ = first_line(error);
  }
  // No argument is kept longer than its operator runs.
  call_.parameters.clear();
  call_.arguments.clear();
}

void CallRecorder::find_parameters(c10::ArrayRef<const c10::IValue> inputs) {
  each_tensor(inputs, [&](const at::Tensor& tensor, size_t position, bool in_list) {
    const auto id = map_.find(tensor);
    if (!id) return;
    ParameterArgument found{{*id, position, tensor}, ""};
    if (in_list) found.why_not = fmt::format("{} takes a list of parameters", call_.name);
    if (map_.overlaps_another(*id)) {
      found.why_not = "it shares its memory with another parameter";
    }
    call_.parameters.push_back(std::move(found));
  });
  if (!call_.parameters.empty()) call_.arguments.assign(inputs.begin(), inputs.end());
}

void CallRecorder::before_operator(const char* name, c10::ArrayRef<const c10::IValue> inputs) {
  call_.name = name;
  call_.parameters.clear();
  call_.arguments.clear();
  find_parameters(inputs);
  batch_.before(call_.name, inputs, !call_.parameters.empty());
  if (with_kernel_uses_) kernel_uses_.before(call_, inputs, batch_);
  if (with_attention_) attention_.before(call_.name, inputs, layers_.last_linear());
  layers_.before(call_);
  const bool in_place = !call_.name.empty() && call_.name.back() == '_' && !inputs.empty();
  if (in_place && inputs[0].isTensor() && !layers_.merges()) protect(inputs[0].toTensor());
  if (in_place && inputs[0].isTensorList()) {
    for (const at::Tensor& tensor : inputs[0].toTensorVector()) protect(tensor);
  }
}

void CallRecorder::protect(const at::Tensor& target) {
  if (!target.defined()) return;
  layers_.protect(target);
  kernel_uses_.protect(target);
}

void CallRecorder::after_operator(const std::vector<c10::IValue>& results) {
  batch_.after(results);
  if (with_attention_) attention_.after(results);
  const bool tensor = !results.empty() && results[0].isTensor();
  if (with_kernel_uses_ && tensor) kernel_uses_.after(results[0].toTensor());
  if (call_.parameters.empty()) return;
  if (!tensor || !results[0].toTensor().defined()) {
    layers_.reject(call_, fmt::format("{} does not return a tensor", call_.name));
    return;
  }
  const at::Tensor output = results[0].toTensor();
  // A view of a parameter is not a use of it; what is done with the view is.
  if (map_.find(output)) return;
  batch_.meet(call_);
  for (ParameterArgument& argument : call_.parameters) {
    if (argument.why_not.empty() && results.size() > 1) {
      argument.why_not = fmt::format("{} has several outputs", call_.name);
    }
  }
  if (with_kernel_uses_) kernel_uses_.record(call_, output, batch_);
  layers_.record(call_, output, batch_);
}

}  // namespace tycho
