#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// Sums over what layers put out in one step, and over the gradients that come back: the
/// LayerObservations. Told of the operators of forward passes by the Observer, on its thread; the
/// gradients arrive on backward's thread.
class ActivationWatch {
 public:
  explicit ActivationWatch(const ModelInfo& model);
  ~ActivationWatch();
  ActivationWatch(const ActivationWatch&) = delete;
  ActivationWatch& operator=(const ActivationWatch&) = delete;

  /// Begins a step.
  void begin(const Needs& needs);
  void set_paused(bool paused);
  /// Before an operator. `parameters`: ids of those it uses and that train; empty for most.
  void before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
              const std::vector<uint32_t>& parameters);
  /// What the operator of the last before(), one that uses parameters, put out.
  void after(const at::Tensor& output, const std::vector<uint32_t>& parameters);
  /// Ends the step: by layer id, gradients divided by the loss scale.
  std::vector<LayerObservation> end(double loss_scale);

 private:
  struct Step;  // outlives the watch in hooks of graphs that the user retains
  struct Sums {
    at::Tensor sum;
    at::Tensor square_sum;
    int64_t elements;
  };
  // The tensor a layer put out last, to find the ReLU behind it and a bias added to it in place.
  struct LayerOutput {
    c10::weak_intrusive_ptr<c10::TensorImpl> tensor;
    uint32_t layer;
  };

  static Sums sums_of(const at::Tensor& tensor);
  void on_consumer(std::string_view name, const at::Tensor& tensor);

  ModelInfo model_;
  Needs needs_;
  std::shared_ptr<Step> step_;
  std::unordered_map<const c10::TensorImpl*, LayerOutput> outputs_;
  std::unordered_map<const c10::TensorImpl*, Sums> output_sums_;
  bool adds_in_place_ = false;  // the operator that runs adds a bias to the output of its layer
};

}  // namespace tycho
