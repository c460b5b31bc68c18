#include "tape/loss_tape.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/stack.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "generator_state.h"

namespace tycho::tape {
namespace {

c10::IValue argument_of(const Argument& argument, const std::vector<at::Tensor>& values) {
  if (const auto* other = std::get_if<c10::IValue>(&argument)) return *other;
  if (const auto* value = std::get_if<ValueId>(&argument)) return values[*value];
  const auto& list = std::get<TensorList>(argument);
  if (list.optional) {
    c10::List<c10::optional<at::Tensor>> tensors;
    for (const auto& value : list.values) {
      if (value) {
        tensors.push_back(values[*value]);
      } else {
        tensors.push_back(c10::nullopt);
      }
    }
    return tensors;
  }
  c10::List<at::Tensor> tensors;
  for (const auto& value : list.values) {
    tensors.push_back(value ? values[*value] : at::Tensor());
  }
  return tensors;
}

void run_call(const Call& call, std::vector<at::Tensor>* values) {
  if (!call.operation) {
    const at::Tensor& base = (*values)[std::get<ValueId>(call.arguments[0])];
    (*values)[*call.results[0]] = at::as_strided(base, call.view.sizes, call.view.strides,
                                                 base.storage_offset() + call.view.offset);
    return;
  }
  if (call.generator.defined()) set_state(at::detail::getDefaultCPUGenerator(), call.generator);
  torch::jit::Stack stack;
  stack.reserve(call.arguments.size());
  for (const Argument& argument : call.arguments) stack.push_back(argument_of(argument, *values));
  call.operation->callBoxed(&stack);
  size_t next = 0;
  const auto take = [&](const at::Tensor& tensor) {
    if (next < call.results.size() && call.results[next]) (*values)[*call.results[next]] = tensor;
    ++next;
  };
  for (const c10::IValue& result : stack) {
    if (result.isTensor()) take(result.toTensor());
    if (result.isTensorList()) {
      for (const at::Tensor& tensor : result.toTensorVector()) take(tensor);
    }
  }
}

void observe(const Call& call, const LossTape::Replay& replay, std::vector<at::Tensor>* values) {
  for (const auto& result : call.results) {
    if (!result || !(*values)[*result].defined()) continue;
    at::Tensor& value = (*values)[*result];
    if (replay.choices != nullptr && !value.is_floating_point()) {
      const auto [chosen, first] = replay.choices->try_emplace(*result, value);
      if (!first) value = chosen->second;
    }
    if (replay.computed) replay.computed(*result, value);
  }
}

/// A copy with the same sizes and strides, so that operators choose the same kernels; where entries
/// overlap, of one of them.
at::Tensor copy_of(const at::Tensor& tensor) {
  at::Tensor narrow = tensor.detach();
  if (narrow.layout() == at::kStrided) {
    for (int64_t d = 0; d < narrow.dim(); ++d) {
      if (narrow.stride(d) == 0 && narrow.size(d) > 1) narrow = narrow.narrow(d, 0, 1);
    }
  }
  at::Tensor copy = narrow.clone();
  if (copy.sizes() != tensor.sizes()) copy = copy.expand(tensor.sizes());
  return tensor.requires_grad() ? copy.requires_grad_(true) : copy;
}

std::string_view base_name(std::string_view name) {
  const size_t colons = name.rfind(':');
  return colons == std::string_view::npos ? name : name.substr(colons + 1);
}

/// Operators whose first argument is what the network puts out, whose second is the target.
bool is_loss(std::string_view name) {
  constexpr std::string_view kLosses[] = {"cross_entropy_loss",
                                          "nll_loss",
                                          "nll_loss_nd",
                                          "nll_loss2d",
                                          "mse_loss",
                                          "l1_loss",
                                          "smooth_l1_loss",
                                          "huber_loss",
                                          "binary_cross_entropy_with_logits",
                                          "binary_cross_entropy",
                                          "kl_div",
                                          "poisson_nll_loss",
                                          "soft_margin_loss",
                                          "multi_margin_loss",
                                          "multilabel_margin_loss",
                                          "hinge_embedding_loss"};
  return std::find(std::begin(kLosses), std::end(kLosses), name) != std::end(kLosses);
}

}  // namespace

LossTape::LossTape(std::vector<Value> values, std::vector<Call> calls, ValueId loss)
    : values_(std::move(values)) {
  all_.calls = std::move(calls);
  all_ = program_for(loss, std::nullopt);
  take_constants();
  find_output();
}

/// Calls that the result needs, going backwards: those that make a value that is needed, and those
/// that write to the memory of one. A view shares its memory with what it views.
LossTape::Program LossTape::program_for(ValueId result, std::optional<ValueId> given) const {
  std::vector<ValueId> memory(values_.size());
  for (ValueId value = 0; value < memory.size(); ++value) memory[value] = value;
  // Results may be views of any argument.
  const auto find = [&](ValueId value) {
    while (memory[value] != value) value = memory[value] = memory[memory[value]];
    return value;
  };
  const bool any_write = std::any_of(all_.calls.begin(), all_.calls.end(),
                                     [](const Call& call) { return !call.written.empty(); });
  if (any_write) {
    for (const Call& call : all_.calls) {
      const bool views = !call.operation || !call.written.empty() ||
                         std::any_of(call.operation->schema().returns().begin(),
                                     call.operation->schema().returns().end(),
                                     [](const c10::Argument& r) { return r.alias_info(); });
      if (!views) continue;
      std::optional<ValueId> first;
      visit_arguments(call, [&](ValueId value) {
        if (values_[value].kind == Value::kParameter) return;
        if (!first) first = value;
      });
      for (const auto& each : call.results) {
        if (each && first) memory[find(*each)] = find(*first);
      }
    }
  }
  std::vector<bool> needed(values_.size()), memory_needed(values_.size());
  const auto need = [&](ValueId value) {
    needed[value] = true;
    if (any_write) memory_needed[find(value)] = true;
  };
  need(result);
  Program program;
  program.result = result;
  std::vector<bool> dead(values_.size());
  for (auto call = all_.calls.rbegin(); call != all_.calls.rend(); ++call) {
    bool live = false;
    for (const auto& each : call->results) live = live || (each && needed[*each] && each != given);
    for (const ValueId each : call->written) live = live || memory_needed[find(each)];
    if (!live) continue;
    std::vector<ValueId> last;
    const auto last_use = [&](ValueId value) {
      if (!dead[value] && value != result) last.push_back(value);
      dead[value] = true;
    };
    visit_arguments(*call, last_use);
    for (const auto& each : call->results) {
      if (each) last_use(*each);
    }
    visit_arguments(*call, need);
    program.calls.push_back(*call);
    program.dead_after.push_back(std::move(last));
  }
  std::reverse(program.calls.begin(), program.calls.end());
  std::reverse(program.dead_after.begin(), program.dead_after.end());
  return program;
}

at::Tensor LossTape::execute(const Program& program, std::optional<ValueId> given,
                             const at::Tensor& value, const Replay* replay) const {
  const at::AutoGradMode with_gradients(true);
  std::vector<at::Tensor> values(values_.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const Value& each = values_[i];
    values[i] = each.tensor;
    if (replay != nullptr) {
      const auto found = replay->given.find(static_cast<ValueId>(i));
      if (found != replay->given.end()) values[i] = found->second;
    }
    if (each.kind == Value::kScratch && values[i].defined()) values[i] = values[i].clone();
  }
  if (given) values[*given] = value;
  for (size_t i = 0; i < program.calls.size(); ++i) {
    run_call(program.calls[i], &values);
    if (replay != nullptr) observe(program.calls[i], *replay, &values);
    for (const ValueId dead : program.dead_after[i]) values[dead].reset();
  }
  return values[program.result];
}

at::Tensor LossTape::loss(const Replay& replay) const {
  return execute(all_, std::nullopt, {}, &replay);
}

at::Tensor LossTape::loss() const { return execute(all_, std::nullopt, {}); }

at::Tensor LossTape::output() const { return execute(to_output_, std::nullopt, {}); }

at::Tensor LossTape::loss(const at::Tensor& output) const {
  return execute(from_output_, output_, output);
}

ValueId LossTape::first_without_source() const {
  std::vector<bool> made(values_.size());
  ValueId missing = kNoValue;
  const auto check = [&](ValueId value) {
    const bool there = values_[value].kind != Value::kComputed || made[value];
    if (!there && missing == kNoValue) missing = value;
  };
  for (const Call& call : all_.calls) {
    visit_arguments(call, check);
    for (const auto& each : call.results) {
      if (each) made[*each] = true;
    }
  }
  check(all_.result);
  return missing;
}

void LossTape::take_constants() {
  const at::NoGradGuard no_grad;
  std::vector<bool> used(values_.size());
  for (const Call& call : all_.calls) {
    visit_arguments(call, [&](ValueId value) { used[value] = true; });
    if (call.generator.defined()) bytes_ += static_cast<int64_t>(call.generator.nbytes());
  }
  for (size_t i = 0; i < values_.size(); ++i) {
    Value& value = values_[i];
    if (value.kind == Value::kParameter || value.kind == Value::kComputed) continue;
    if (!used[i]) {
      value.tensor.reset();
      continue;
    }
    if (value.kind == Value::kConstant) value.tensor = copy_of(value.tensor);
    if (value.tensor.layout() == at::kStrided) {
      bytes_ += static_cast<int64_t>(value.tensor.storage().nbytes());
    }
  }
}

void LossTape::find_output() {
  for (auto call = all_.calls.rbegin(); call != all_.calls.rend(); ++call) {
    if (!call->operation || call->arguments.size() < 2) continue;
    const std::string name(base_name(call->operation->operator_name().name));
    if (!is_loss(name)) continue;
    const auto* input = std::get_if<ValueId>(&call->arguments[0]);
    if (input == nullptr || values_[*input].kind != Value::kComputed) return;
    ValueId output = *input;
    if (name.rfind("nll_loss", 0) == 0) {
      // Its input are logarithms of probabilities; the network puts out what they are made of.
      for (const Call& maker : all_.calls) {
        if (!maker.operation || maker.results.empty() || maker.results[0] != output) continue;
        const auto* logits = std::get_if<ValueId>(&maker.arguments[0]);
        const std::string_view made_by = base_name(maker.operation->operator_name().name);
        if (logits == nullptr || (made_by != "log_softmax" && made_by != "_log_softmax")) continue;
        if (values_[*logits].kind == Value::kComputed) output = *logits;
        break;
      }
    }
    Program from = program_for(all_.result, output);
    for (const Call& each : from.calls) {
      bool foreign = !each.written.empty();
      visit_arguments(each, [&](ValueId value) {
        foreign = foreign || values_[value].kind == Value::kParameter;
      });
      if (foreign) return;  // Something else of the model's takes part in the loss.
    }
    from_output_ = std::move(from);
    to_output_ = program_for(output, std::nullopt);
    output_ = output;
    const bool classes = name == "cross_entropy_loss" || name.rfind("nll_loss", 0) == 0;
    if (const auto* target = std::get_if<ValueId>(&call->arguments[1]); classes && target) {
      const at::Tensor& tensor = values_[*target].tensor;
      if (values_[*target].kind == Value::kConstant && tensor.scalar_type() == at::kLong &&
          tensor.dim() == 1) {
        labels_ = tensor;
      }
    }
    return;
  }
}

}  // namespace tycho::tape
