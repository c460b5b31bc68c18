#pragma once

#include <optional>
#include <string>
#include <vector>

#include "curvature/model_state.h"
#include "tycho/loss_surface.h"
#include "tycho/probe_loss.h"

namespace tycho {

/// How Hessian-vector products of a loss are made; decided at the first product, once per loss.
struct ProductMethod {
  enum Kind { kUndecided, kDoubleBackward, kFiniteDifferences };
  Kind kind = kUndecided;
  std::string reason;  ///< of finite differences
};

/// A ProbeLoss as a LossSurface. Nothing happens before the first evaluation.
class ProbeLossSurface : public LossSurface {
 public:
  struct Parameter {
    at::Tensor tensor;
    uint32_t id = kNoParameter;
  };
  /// `name`: of the loss, in errors. `parameters`: all of the model's, in the order of `state`.
  /// References and `method` outlive the surface.
  ProbeLossSurface(std::string name, const ProbeLoss& loss, SavedState& state,
                   const std::vector<Parameter>& parameters, ProductMethod* method);

  int64_t dimension() const override { return dimension_; }
  const std::vector<Block>& blocks() const override { return blocks_; }
  at::TensorOptions options() const override { return options_; }
  at::Tensor value() override;
  at::Tensor gradient(bool products_follow = false) override;
  at::Tensor hessian_product(const at::Tensor& vector) override;
  at::Tensor block_product(size_t block, const at::Tensor& vector) override;
  bool has_output() const override { return static_cast<bool>(loss_.output); }
  at::Tensor gauss_newton_product(const at::Tensor& vector) override;
  OutputLoss output_loss() override;
  void move(const at::Tensor& displacement) override;

  /// LossError where two evaluations differ that should not. Costs one or two forward passes.
  void check_repeatable();

 private:
  using Tensors = std::vector<at::Tensor>;

  [[noreturn]] void fail(const std::string& what) const { throw LossError(name_, what); }
  /// Runs what calls the user's code, with gradients recorded and operators unobserved.
  template <typename Action>
  auto evaluate(const Action& action) -> decltype(action());
  void begin();
  void forget_graph();
  size_t chunks() const { return loss_.weights.size(); }
  bool keeps_graph() const { return loss_.keep_graph && chunks() == 1; }
  at::Tensor chunk_output(size_t chunk);
  at::Tensor chunk_loss(size_t chunk, const at::Tensor& output);
  at::Tensor chunk_loss(size_t chunk) { return chunk_loss(chunk, chunk_output(chunk)); }
  /// Gradients of one chunk's weighted loss; undefined where the loss does not depend on it.
  Tensors chunk_gradients(size_t chunk, bool create_graph);
  void check_gradients(const Tensors& gradients) const;
  at::Tensor flatten(const Tensors& parts, size_t first, size_t count) const;
  Tensors split(const at::Tensor& vector, size_t first, size_t count) const;
  at::Tensor product(const at::Tensor& vector, size_t first, size_t count);
  at::Tensor exact_product(const at::Tensor& vector, size_t first, size_t count);
  at::Tensor difference_product(const at::Tensor& vector, size_t first, double scale);
  void decide();
  double parameter_norm() const;
  bool wide() const { return options_.dtype() == caffe2::TypeMeta::Make<double>(); }

  std::string name_;
  const ProbeLoss& loss_;
  SavedState& state_;
  ProductMethod* method_;
  Tensors parameters_;  // those that are trained
  std::vector<Block> blocks_;
  int64_t dimension_ = 0;
  at::TensorOptions options_;
  Tensors graph_;  // gradients with their graph
  int64_t graph_position_ = 0;
  std::optional<double> graph_value_;
};

}  // namespace tycho
