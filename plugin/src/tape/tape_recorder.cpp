#include "tape/tape_recorder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error_text.h"
#include "generator_state.h"
#include "graph_search.h"

#ifndef NDEBUG
#error "record_function.h has another layout without NDEBUG than in a release LibTorch"
#endif

namespace tycho::tape {
namespace {

constexpr size_t kMostCalls = 200000;

const c10::StorageImpl* memory_of(const at::Tensor& tensor) {
  return tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
}

bool same_bytes(const at::Tensor& one, const at::Tensor& other) {
  return one.defined() && one.nbytes() == other.nbytes() &&
         std::memcmp(one.data_ptr(), other.data_ptr(), one.nbytes()) == 0;
}

/// Whether a call returns what it is given, with or without its graph.
bool passes_on(const Call& call) {
  if (!call.operation) return false;
  const std::string& name = call.operation->operator_name().name;
  return name == "aten::detach" || name == "aten::clone" || name == "aten::to";
}

/// All tensors of an argument.
template <typename Visit>
void visit_tensors(const c10::IValue& argument, const Visit& visit) {
  if (argument.isTensor()) {
    visit(argument.toTensor());
  } else if (argument.isList()) {
    for (const c10::IValue& element : argument.toListRef()) {
      if (element.isTensor()) visit(element.toTensor());
    }
  }
}

}  // namespace

TapeRecorder::TapeRecorder(const std::vector<at::Tensor>& parameters,
                           std::unordered_set<const c10::TensorImpl*> copied_at_once,
                           WorkMeter* meter)
    : copied_at_once_(std::move(copied_at_once)) {
  for (const at::Tensor& parameter : parameters) {
    if (!parameter.device().is_cpu()) refuse("the model is not on the CPU");
    add({Value::kParameter, parameter}, parameter);
    parameter_memories_.insert(memory_of(parameter));
  }
  watch_ = std::make_unique<OperatorWatch>(this, meter);
}

TapeRecorder::~TapeRecorder() = default;

ValueId TapeRecorder::number_of(const at::Tensor& tensor) const {
  const auto found = numbers_.find(tensor.unsafeGetTensorImpl());
  return found == numbers_.end() ? kNoValue : found->second;
}

void TapeRecorder::refuse(std::string why) {
  if (why_not_.empty()) why_not_ = std::move(why);
}

ValueId TapeRecorder::add(Value value, const at::Tensor& seen_as) {
  const auto id = static_cast<ValueId>(values_.size());
  values_.push_back(std::move(value));
  has_gradient_.push_back(seen_as.requires_grad());
  numbers_[seen_as.unsafeGetTensorImpl()] = id;
  tensors_.emplace_back(seen_as.getIntrusivePtr());
  const c10::StorageImpl* memory = memory_of(seen_as);
  if (memory != nullptr && values_.back().kind != Value::kConstant) {
    memories_.try_emplace(memory, seen_as.storage().getWeakStorageImpl());
  }
  return id;
}

ValueId TapeRecorder::add_view(ValueId base, const at::Tensor& tensor, const at::Tensor& of) {
  Call call;
  call.view = {tensor.sizes().vec(), tensor.strides().vec(),
               tensor.storage_offset() - of.storage_offset()};
  call.arguments.emplace_back(base);
  const ValueId id = add({}, tensor);
  call.results.emplace_back(id);
  calls_.push_back(std::move(call));
  return id;
}

bool TapeRecorder::is_known(const at::Tensor& tensor) const {
  const auto known = [&](const at::TensorBase& each) {
    const auto found = numbers_.find(each.unsafeGetTensorImpl());
    return found != numbers_.end() && values_[found->second].kind != Value::kConstant;
  };
  return known(tensor) || (tensor.is_view() && known(tensor._base()));
}

bool TapeRecorder::depends(const at::Tensor& tensor) const {
  if (!tensor.defined()) return false;
  if (is_known(tensor)) return true;
  if (!tensor.requires_grad() || tensor.is_leaf() || !tensor.grad_fn()) return false;
  const std::vector<at::Tensor> leaves = leaves_before(tensor.grad_fn().get());
  return std::any_of(leaves.begin(), leaves.end(), [&](const at::Tensor& leaf) {
    const auto found = numbers_.find(leaf.unsafeGetTensorImpl());
    return found != numbers_.end() && values_[found->second].kind == Value::kParameter;
  });
}

ValueId TapeRecorder::value_of(const at::Tensor& tensor, bool written) {
  const auto found = numbers_.find(tensor.unsafeGetTensorImpl());
  if (found != numbers_.end()) {
    const Value& value = values_[found->second];
    if (!written || value.kind != Value::kConstant) return found->second;
    // A constant so far, from now on a value: those who used it keep what they were given.
  }
  if (tensor.is_view()) {
    const at::Tensor base(tensor._base());
    const auto of = numbers_.find(base.unsafeGetTensorImpl());
    const bool base_known = of != numbers_.end() && values_[of->second].kind != Value::kConstant;
    if (base_known || written) {
      const ValueId base_value = base_known ? of->second : value_of(base, true);
      // Offsets of scratch copies begin at 0.
      return add_view(base_value, tensor, base);
    }
  }
  if (depends(tensor)) {
    const ValueId id = add({}, tensor);
    unknown_[id] = tensor.grad_fn()->name();
    return id;
  }
  if (written) {
    // Others may see what is written through it.
    if (tensor.requires_grad()) refuse("a leaf that is not a parameter is written to");
    return add({Value::kScratch, tensor.detach().clone()}, tensor);
  }
  const bool hides =
      memories_.count(memory_of(tensor)) > 0 || copied_at_once_.count(tensor.unsafeGetTensorImpl());
  if (!hides) held_.push_back({tensor, tensor.is_inference() ? 0 : tensor._version()});
  // A leaf that needs gradients keeps needing them: a penalty may ask for them.
  const bool leaf = tensor.requires_grad() && tensor.is_leaf();
  at::Tensor constant = hides ? tensor.detach().clone() : leaf ? tensor : tensor.detach();
  if (hides && leaf) constant.requires_grad_(true);
  return add({Value::kConstant, std::move(constant)}, tensor);
}

bool TapeRecorder::before(const char*, c10::ArrayRef<const c10::IValue>) { return false; }

bool TapeRecorder::before_call(const at::RecordFunction& function,
                               c10::ArrayRef<const c10::IValue> inputs) {
  if (paused_ || !why_not_.empty()) return false;
  try {
    return record(function, inputs);
  } catch (const std::exception& error) {
    refuse(error_text(error));
    return false;
  }
}

bool TapeRecorder::record(const at::RecordFunction& function,
                          c10::ArrayRef<const c10::IValue> inputs) {
  const std::string_view written_by = function.name();
  if (!written_by.empty() && written_by.back() == '_') last_written_ = nullptr;  // This call's own.
  check_hidden_write();
  bool any_depends = false;
  for (const c10::IValue& input : inputs) {
    visit_tensors(input,
                  [&](const at::Tensor& tensor) { any_depends = any_depends || depends(tensor); });
  }
  if (!any_depends) return false;
  if (at::autocast::is_cpu_enabled() || at::autocast::is_enabled()) {
    refuse("operators run under autocast");
    return false;
  }
  const auto name = function.operator_name();
  const auto operation =
      name ? c10::Dispatcher::singleton().findOp(*name) : c10::optional<c10::OperatorHandle>();
  if (!operation || operation->schema().arguments().size() != inputs.size()) {
    refuse(
        fmt::format("{} cannot be called again: the dispatcher does not know it, or its "
                    "arguments cannot be seen",
                    function.name()));
    return false;
  }
  if (calls_.size() >= kMostCalls) {
    refuse(fmt::format("the step has more than {} operators", kMostCalls));
    return false;
  }
  call_ = Call();
  call_.operation = *operation;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const c10::IValue& input = inputs[i];
    const auto* alias = operation->schema().arguments()[i].alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    const auto number = [&](const at::Tensor& tensor) {
      const ValueId value = value_of(tensor, written);
      if (written) call_.written.push_back(value);
      return value;
    };
    if (input.isTensor() && input.toTensor().defined()) {
      call_.arguments.emplace_back(number(input.toTensor()));
      continue;
    }
    bool any = false;
    visit_tensors(input, [&](const at::Tensor& tensor) { any = any || tensor.defined(); });
    if (!any) {
      call_.arguments.emplace_back(input);
      continue;
    }
    TensorList list;
    list.optional = !input.isTensorList();
    for (const c10::IValue& element : input.toListRef()) {
      if (element.isTensor() && element.toTensor().defined()) {
        list.values.emplace_back(number(element.toTensor()));
      } else {
        list.values.emplace_back();
      }
    }
    call_.arguments.emplace_back(std::move(list));
  }
  at::Tensor now = state_of(at::detail::getDefaultCPUGenerator());
  if (!same_bytes(generator_, now)) call_.generator = generator_ = std::move(now);
  return why_not_.empty();
}

void TapeRecorder::after(const std::vector<c10::IValue>& outputs) {
  try {
    for (const c10::IValue& output : outputs) {
      const auto take = [&](const at::Tensor& tensor) {
        if (!tensor.defined()) {
          call_.results.emplace_back();
          return;
        }
        const ValueId value = add({}, tensor);
        call_.results.emplace_back(value);
        if (tensor.numel() == 1 && tensor.is_floating_point() && tensor.device().is_cpu()) {
          scalars_.emplace_back(value, tensor.detach());
        }
      };
      if (output.isTensor()) take(output.toTensor());
      if (output.isTensorList()) {
        for (const at::Tensor& tensor : output.toTensorVector()) take(tensor);
      }
    }
    calls_.push_back(std::move(call_));
  } catch (const std::exception& error) {
    refuse(error_text(error));
  }
}

/// What writes with gradients disabled is not recorded: it must not have changed a value.
void TapeRecorder::check_hidden_write() {
  const c10::StorageImpl* memory = std::exchange(last_written_, nullptr);
  if (memory == nullptr || parameter_memories_.count(memory) > 0) return;
  if (memories_.count(memory) > 0) {
    refuse("a value of the forward pass was written to with gradients disabled");
  }
}

void TapeRecorder::writes(const c10::IValue& target) {
  if (paused_ || !why_not_.empty()) return;
  try {
    check_hidden_write();
    if (target.isTensor() && target.toTensor().defined()) {
      last_written_ = memory_of(target.toTensor());
    }
  } catch (const std::exception& error) {
    refuse(error_text(error));
  }
}

std::optional<ValueId> TapeRecorder::sum_of_ends(double value) {
  std::vector<bool> used(values_.size());
  for (const Call& call : calls_) {
    const bool counts =
        std::any_of(call.results.begin(), call.results.end(),
                    [&](const auto& result) { return result && has_gradient_[*result]; });
    if (counts) visit_arguments(call, [&](ValueId value) { used[value] = true; });
  }
  std::vector<ValueId> ends;
  double sum = 0;
  for (const auto& [id, number] : scalars_) {
    if (!has_gradient_[id] || used[id]) continue;
    ends.push_back(id);
    sum += number.item<double>();
  }
  constexpr double kRounding = 1e-6;
  if (ends.size() < 2 || !(std::abs(sum - value) <= kRounding * std::abs(value))) {
    return std::nullopt;
  }
  const auto add_operator = c10::Dispatcher::singleton().findSchemaOrThrow("aten::add", "Tensor");
  ValueId total = ends[0];
  for (size_t i = 1; i < ends.size(); ++i) {
    Call call;
    call.operation = add_operator;
    call.arguments = {Argument(total), Argument(ends[i]), Argument(c10::IValue(1))};
    total = static_cast<ValueId>(values_.size());
    values_.emplace_back();
    call.results.emplace_back(total);
    calls_.push_back(std::move(call));
  }
  return total;
}

std::optional<ValueId> TapeRecorder::root_of(const at::Tensor& loss, double value) {
  ValueId root = kNoValue;
  if (loss.defined()) {
    const auto found = numbers_.find(loss.unsafeGetTensorImpl());
    if (found != numbers_.end() && values_[found->second].kind == Value::kComputed) {
      root = found->second;
    }
    value = loss.numel() == 1 ? loss.item<double>() : value;
  }
  for (auto scalar = scalars_.rbegin(); root == kNoValue && scalar != scalars_.rend(); ++scalar) {
    if (scalar->second.item<double>() == value) root = scalar->first;
  }
  if (root == kNoValue) return sum_of_ends(value);
  // What was detached for the record is not what was minimised.
  for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
    if (call->results.empty() || call->results[0] != root || !passes_on(*call)) continue;
    if (const auto* from = std::get_if<ValueId>(&call->arguments[0])) root = *from;
  }
  // The sum of microbatches' losses, kept for the record, has no gradient of its own.
  if (!has_gradient_[root]) return sum_of_ends(value);
  return root;
}

Recording TapeRecorder::finish(const at::Tensor& loss, double value) {
  watch_.reset();
  Recording recording;
  // Whatever was written last was the optimizer's, or came after the loss.
  last_written_ = nullptr;
  for (const Held& held : held_) {
    if (held.tensor.is_inference() || held.tensor._version() == held.version) continue;
    written_later_.insert(held.tensor.unsafeGetTensorImpl());
  }
  if (why_not_.empty() && !written_later_.empty()) {
    recording.may_come = true;
    refuse("an input was written to after it was used");
  }
  if (why_not_.empty()) {
    if (const auto root = root_of(loss, value)) {
      recording.tape = std::make_unique<LossTape>(std::move(values_), std::move(calls_), *root);
      const ValueId unknown = recording.tape->first_without_source();
      if (unknown != kNoValue) {
        refuse(fmt::format("a part of it was made by {}, not by operators that can be called again",
                           unknown_.count(unknown) > 0 ? unknown_[unknown] : "something unknown"));
        recording.tape.reset();
      }
    } else {
      refuse("the loss given to Session::step was not computed by the step's operators");
    }
  }
  recording.why_not = why_not_;
  return recording;
}

}  // namespace tycho::tape
