#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "operator_watch.h"
#include "parameter_map.h"
#include "structure/channel_shape.h"
#include "structure/symmetry_classes.h"
#include "torch_compat.h"
#include "tycho/probe.h"

namespace tycho::structure {

/// A layer whose output went into a value, and the operators between, as Call names them.
struct Source {
  uint32_t layer = 0;
  std::vector<std::string_view> via;
};

/// What is known of an activation.
struct Value {
  ChannelShape shape;
  int channels = -1;  ///< its class; -1: nothing scales it
  int sign = 1;
  std::shared_ptr<const std::vector<Source>> sources;  ///< may be nullptr: none
};

/// An argument of an operator.
struct Argument {
  enum class Kind { kPlain, kConstant, kParameter, kValue };
  Kind kind = Kind::kPlain;
  c10::IValue plain;
  at::Tensor tensor;
  uint32_t parameter = 0;
  std::shared_ptr<const Value> value;  ///< where the kind says so
  std::vector<Argument> list;          ///< of a list of tensors
};

struct Call {
  /// Without "aten::" and the underscore of an in-place operator; LibTorch's, which outlives a
  /// step.
  std::string_view name;
  std::vector<Argument> arguments;

  const Argument* at(size_t i) const { return i < arguments.size() ? &arguments[i] : nullptr; }
  const Value* value(size_t i) const;
  bool is_parameter(size_t i) const;
  int64_t integer(size_t i, int64_t otherwise) const;
  bool flag(size_t i, bool otherwise) const;
  double number(size_t i, double otherwise) const;
};

/// What was found in one step.
struct Structure {
  v1::ModelStructure description;
  std::vector<SymmetryGroup> groups;
};

/// Follows activations through the operators of a step's forward passes: which layer feeds which,
/// and under which scalings and shifts of parameters the outputs do not change (theory T1.2). Each
/// operator is interpreted by a rule (operator_rules.cpp); one without a rule breaks the symmetries
/// of all it reads, so that a symmetry is claimed only where everything is known. Values are known
/// by their node in the autograd graph, which in-place operators and views change as they should.
///
/// Costs a few microseconds an operator, and for each normalisation a copy of its output and a pass
/// over the gradient (its epsilon breaks scale invariance by an amount that is measured).
class StructureTracer : public OperatorListener {
 public:
  /// `hooks` takes the time of hooks on gradients; nullptr: not measured.
  explicit StructureTracer(const ModelInfo& model, WorkMeter* hooks = nullptr);
  ~StructureTracer() override;

  bool before(const char* name, c10::ArrayRef<const c10::IValue> inputs) override;
  void after(const std::vector<c10::IValue>& outputs) override;
  void writes(const c10::IValue&) override {}
  void set_paused(bool paused);

  /// Ends the step. Gradients were scaled by `loss_scale`.
  Structure finish(double loss_scale);

 private:
  friend class OperatorRules;

  // How a dimension of a parameter, or of some of its rows, scales.
  struct Slot {
    std::vector<int64_t> view;
    std::vector<int64_t> axes;
    int channels = -1;
    int sign = 1;
    // Each channel multiplies something of its own: adding one number to all shifts nothing alike.
    bool gain = false;
  };
  // By dimension of the parameter (0: output, 1: input of a linear map); none: does not scale.
  struct ParameterUse {
    int64_t begin = 0;
    int64_t count = 0;
    std::map<int, Slot> slots;
  };
  struct ParameterState {
    bool tainted = false;  // used in a way that is not understood
    std::vector<ParameterUse> uses;
  };
  struct NodeValues {
    compat::WeakNode node;
    std::map<uint32_t, std::shared_ptr<const Value>> outputs;
  };
  // What a normalisation's epsilon adds to the derivative with respect to the scale of its input.
  struct EpsilonTerm {
    int channels;
    int sign;
    at::Tensor sum;  // [channels], or one number
  };
  struct Shared {  // outlives the tracer in hooks
    std::mutex mutex;
    bool active = true;
    bool failed = false;  // a term is missing
    WorkMeter* meter = nullptr;
    std::vector<EpsilonTerm> terms;
  };

  Argument describe(const c10::IValue& input);
  std::optional<uint32_t> parameter_of(const at::Tensor& tensor) const;
  std::shared_ptr<const Value> find_value(const at::Tensor& tensor);
  void break_ancestors(const at::Tensor& tensor);
  void break_value(const Value& value);
  void remember(const at::Tensor& tensor, Value value);
  void use_parameter(uint32_t id, ParameterUse use);
  void taint(uint32_t id);
  void note_edges(const Call& call, const std::vector<uint32_t>& layers);
  std::shared_ptr<const std::vector<Source>> sources_of(const Call& call,
                                                        std::optional<uint32_t> layer) const;
  void note_fact(uint32_t layer, std::string_view name, int64_t fan_in, int64_t fan_out);
  void collect_groups(Structure* result, double loss_scale);

  const ModelInfo& model_;
  mutable ParameterMap map_;
  bool paused_ = false;
  Call call_;
  std::unordered_map<const torch::autograd::Node*, NodeValues> values_;
  SymmetryClasses classes_;
  std::vector<ParameterState> parameters_;
  std::shared_ptr<Shared> shared_;
  v1::ModelStructure description_;
  std::map<uint32_t, int> fact_of_layer_;
  std::set<std::tuple<uint32_t, uint32_t, std::vector<std::string_view>>> edges_seen_;
};

}  // namespace tycho::structure
