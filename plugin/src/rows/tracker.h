#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "rows/rules.h"

namespace tycho::rows {

/// Follows, operator by operator, where the examples of the batch lie in the tensors of a step.
///
/// What is assumed: a tensor that comes from outside (no operator made it in this step) and that
/// has as many entries in `batch_dim` as the batch has examples holds one example at each. How many
/// examples a batch has is decided by the first parameter's use; whether the step really has as
/// many is for the caller to check. All else follows from what operators are known to do to rows.
/// Costs a look-up per tensor and operator; small copies to the CPU where rows are gathered by
/// index. Not thread-safe.
class Tracker {
 public:
  /// `is_parameter`: whether a tensor shares storage with a parameter. `on_lost`: an operator made
  /// something differentiable of known examples of which it is not known where they lie, or which
  /// mixes them; its output and why. What lies before it has no per-example gradients if a gradient
  /// comes through it.
  Tracker(std::function<bool(const at::Tensor&)> is_parameter,
          std::function<void(const at::Tensor& output, const std::string& why)> on_lost);

  /// A new step. `expected`: examples of a forward pass, preferred where several sizes are
  /// possible; 0: unknown.
  void start_step(int64_t batch_dim, int64_t expected);
  /// A backward pass has ended: what comes belongs to another forward pass.
  void next_pass() { examples_ = 0; }

  void before(const char* name, c10::ArrayRef<const c10::IValue> inputs);
  void after(const std::vector<c10::IValue>& results);

  /// Examples of the current forward pass; 0: not decided.
  int64_t examples() const { return examples_; }
  /// To be called between before() and after() of the first use of a parameter: decides by what
  /// the parameter meets. True: decided.
  bool decide(const std::vector<at::Tensor>& operands);
  /// What decide() would say if nothing was decided yet; 0: nothing.
  int64_t likely_examples(const std::vector<at::Tensor>& operands) const;
  /// Where the examples of the current pass lie.
  Layout layout(const at::Tensor& tensor) const;
  void forget_rest_of_call();

 private:
  // By size of the batch: until that is decided there may be several.
  using Layouts = std::vector<Layout>;
  struct Entry {
    c10::weak_intrusive_ptr<c10::TensorImpl> alive;
    uint32_t version = 0;
    Layouts layouts;
  };
  // Consecutive writes of a storage that left the examples where they were.
  struct Writes {
    uint32_t since = 0;
    uint32_t until = 0;
  };

  Layouts layouts(const at::Tensor& tensor) const;
  void meet(const at::Tensor& tensor, const Layouts& layouts);
  static Layout in_batch_of(const Layouts& layouts, int64_t examples);
  void note(const at::Tensor& output, Layouts layouts);

  std::function<bool(const at::Tensor&)> is_parameter_;
  std::function<void(const at::Tensor&, const std::string&)> on_lost_;
  int64_t batch_dim_ = 0;
  int64_t expected_ = 0;
  int64_t examples_ = 0;
  std::unordered_map<const c10::TensorImpl*, Entry> entries_;
  std::unordered_map<const void*, Writes> writes_;

  // The operator that runs.
  std::string name_;
  bool in_place_ = false;
  bool makes_data_ = false;
  std::vector<c10::IValue> inputs_;
  std::vector<Argument> arguments_;
  std::vector<Layouts> argument_layouts_;
  uint32_t version_before_ = 0;
};

}  // namespace tycho::rows
