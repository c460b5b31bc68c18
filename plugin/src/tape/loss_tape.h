#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <variant>
#include <vector>

namespace tycho::tape {

/// A tensor of a tape, by its number.
using ValueId = uint32_t;
constexpr ValueId kNoValue = static_cast<ValueId>(-1);

struct Value {
  enum Kind {
    kParameter,  ///< `tensor` is the model's own
    kConstant,   ///< `tensor` is what the trainer's operator was given
    kScratch,    ///< operators write to it: each replay begins with a copy of `tensor`
    kComputed    ///< by an operator of the tape
  };
  Kind kind = kComputed;
  at::Tensor tensor;
};

/// An argument of a call: a tensor, a list of tensors (a missing one is undefined), or anything
/// else.
struct TensorList {
  std::vector<std::optional<ValueId>> values;
  bool optional = false;  ///< List<optional<Tensor>>, such as the indices of aten::index
};
using Argument = std::variant<c10::IValue, ValueId, TensorList>;

/// A view of a tensor that was made before the tape knew it.
struct StridedView {
  std::vector<int64_t> sizes, strides;
  int64_t offset = 0;
};

/// One call of an operator.
struct Call {
  std::optional<c10::OperatorHandle> operation;  ///< none: `view` of the only argument
  StridedView view;
  std::vector<Argument> arguments;
  /// Tensors that it returns, lists taken apart; nothing for one that is undefined.
  std::vector<std::optional<ValueId>> results;
  std::vector<ValueId> written;  ///< arguments that it writes to
  /// State of the CPU's default generator before it, where that is another than before the call
  /// before; else undefined.
  at::Tensor generator;
};

/// All tensors among its arguments.
template <typename Visit>
void visit_arguments(const Call& call, const Visit& visit) {
  for (const Argument& argument : call.arguments) {
    if (const auto* value = std::get_if<ValueId>(&argument)) visit(*value);
    if (const auto* list = std::get_if<TensorList>(&argument)) {
      for (const auto& each : list->values) {
        if (each) visit(*each);
      }
    }
  }
}

/// The loss of one batch as a function of the model's parameters: the trainer's own operators,
/// called again. Twice differentiable as far as the operators are. Constant but for scratch copies
/// of its own; of one thread at a time.
class LossTape {
 public:
  /// What a TapeRecorder saw; `loss`: the scalar.
  LossTape(std::vector<Value> values, std::vector<Call> calls, ValueId loss);

  /// The loss, with its graph, at the parameters' present values. Costs the trainer's forward pass
  /// from the first parameter on, and sets the CPU's default generator where a call
  /// had a state. Throws what the operators throw.
  at::Tensor loss() const;

  /// An evaluation with other data.
  struct Replay {
    /// Constants and scratch copies that take these values, of the same sizes.
    std::unordered_map<ValueId, at::Tensor> given;
    /// Results that are not floating point (indices, masks, counts): taken from here where they are
    /// here, else put here.
    std::unordered_map<ValueId, at::Tensor>* choices = nullptr;
    /// Each result, as soon as its call has returned.
    std::function<void(ValueId value, const at::Tensor& tensor)> computed;
  };
  /// As loss(), of other data. Throws also where sizes depend on what was given.
  at::Tensor loss(const Replay& replay) const;

  /// What first_without_source() and others that look at a tape need: its tensors by number, and
  /// the calls that the loss needs, in order.
  const std::vector<Value>& values() const { return values_; }
  const std::vector<Call>& calls() const { return all_.calls; }

  /// Whether the loss is a function of one tensor that the network puts out, found from the
  /// operator of the loss.
  bool has_output() const { return output_.has_value(); }
  at::Tensor output() const;
  /// The loss as a function of its output: no parameter takes part.
  at::Tensor loss(const at::Tensor& output) const;
  /// Classes, int64 [n], where the loss is a cross-entropy of classes; else undefined.
  const at::Tensor& labels() const { return labels_; }

  /// A value that is needed and that no call makes; kNoValue: all have a source.
  ValueId first_without_source() const;
  /// Memory of what the tape holds, but for parameters.
  int64_t bytes() const { return bytes_; }

 private:
  struct Program {
    std::vector<Call> calls;
    ValueId result = 0;
    std::vector<std::vector<ValueId>> dead_after;  // by call: values that nobody needs any more
  };
  Program program_for(ValueId result, std::optional<ValueId> given) const;
  at::Tensor execute(const Program& program, std::optional<ValueId> given, const at::Tensor& value,
                     const Replay* replay = nullptr) const;
  /// Copies of constants: the trainer may write to its own.
  void take_constants();
  void find_output();

  std::vector<Value> values_;
  Program all_, to_output_, from_output_;
  std::optional<ValueId> output_;
  at::Tensor labels_;
  int64_t bytes_ = 0;
};

}  // namespace tycho::tape
