#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "operator_watch.h"
#include "tape/loss_tape.h"

namespace tycho::tape {

/// A tape, or why there is none.
struct Recording {
  std::unique_ptr<LossTape> tape;
  std::string why_not;
  /// Nothing is wrong with the loss; another step may have a tape.
  bool may_come = false;
};

/// Records the operators of one step that depend on the model's parameters, from its construction
/// to finish(). Values that the trainer computes are not kept alive; what goes into these operators
/// from outside (the batch) is, until finish(). Costs a few microseconds per operator. Of the
/// thread that makes it.
class TapeRecorder : public OperatorListener {
 public:
  /// `parameters`: of the model. `copied_at_once`: see written_later().
  TapeRecorder(const std::vector<at::Tensor>& parameters,
               std::unordered_set<const c10::TensorImpl*> copied_at_once, WorkMeter* meter);
  ~TapeRecorder() override;

  /// The number of a tensor that an operator took or returned; kNoValue: of none that is recorded.
  ValueId number_of(const at::Tensor& tensor) const;
  /// Whether it came from outside.
  bool is_given(ValueId value) const {
    return values_[value].kind == Value::kConstant || values_[value].kind == Value::kScratch;
  }

  /// What runs while it is paused belongs to somebody else.
  void set_paused(bool paused) { paused_ = paused; }

  /// Ends the recording. The loss is `loss`, or where that is not on the tape or not defined the
  /// last scalar with this value, or the sum of the losses of microbatches.
  Recording finish(const at::Tensor& loss, double value);
  /// Inputs that were written to after they were used: their next recording copies them when they
  /// are used. Only compared, never read.
  std::unordered_set<const c10::TensorImpl*> take_written_later() {
    return std::move(written_later_);
  }

 private:
  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override;
  bool before_call(const at::RecordFunction& function,
                   c10::ArrayRef<const c10::IValue> inputs) override;
  void after(const std::vector<c10::IValue>& outputs) override;
  void writes(const c10::IValue& target) override;

  bool record(const at::RecordFunction& function, c10::ArrayRef<const c10::IValue> inputs);
  void refuse(std::string why);
  /// Whether a tensor has a number, or is a view of one that has, and is no constant.
  bool is_known(const at::Tensor& tensor) const;
  /// Whether it depends on the model's parameters, as autograd knows it.
  bool depends(const at::Tensor& tensor) const;
  /// Its number; a new constant where it is not known.
  ValueId value_of(const at::Tensor& tensor, bool written);
  ValueId add(Value value, const at::Tensor& seen_as);
  ValueId add_view(ValueId base, const at::Tensor& tensor, const at::Tensor& of);
  void check_hidden_write();
  std::optional<ValueId> root_of(const at::Tensor& loss, double value);
  /// The sum of the scalars that no other value is made of, provided it is this; they are what
  /// several backward passes begin at.
  std::optional<ValueId> sum_of_ends(double value);

  std::vector<Value> values_;
  std::vector<bool> has_gradient_;  // by value
  std::vector<Call> calls_;
  std::unordered_map<const c10::TensorImpl*, ValueId> numbers_;
  // Addresses are not used again while these live.
  std::vector<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> tensors_;
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> memories_;
  std::unordered_set<const c10::StorageImpl*> parameter_memories_;
  std::vector<std::pair<ValueId, at::Tensor>> scalars_;
  std::unordered_map<ValueId, std::string> unknown_;  // by what it was made
  struct Held {
    at::Tensor tensor;
    int64_t version = 0;
  };
  std::vector<Held> held_;
  std::unordered_set<const c10::TensorImpl*> copied_at_once_, written_later_;
  const c10::StorageImpl* last_written_ = nullptr;
  std::string why_not_;
  at::Tensor generator_;
  Call call_;
  bool paused_ = false;
  std::unique_ptr<OperatorWatch> watch_;
};

}  // namespace tycho::tape
