#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "curvature/model_state.h"
#include "curvature/product_proof.h"
#include "tycho/loss_surface.h"
#include "tycho/probe_loss.h"
#include "tycho/product_error.h"

namespace tycho {

/// How Hessian-vector products of a loss are made: proved at the first product, and again for every
/// `proved_every`-th surface, see product_proof.h. Once refuted, they stay differences.
struct ProductMethod {
  enum Kind { kUndecided, kDoubleBackward, kFiniteDifferences, kNone };
  Kind kind = kUndecided;
  std::string reason;  ///< of finite differences, or of none
  double error = 0;    ///< ProvedProducts::product_error
  double scale = 1;    ///< of finite differences
  int64_t proved_every = 16;
  int64_t surfaces = 0;  ///< that asked for gradients or products
};

/// The loss has values, but no derivatives that could be had: what needs them is not observed.
class NoProducts : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A ProbeLoss as a LossSurface. Nothing happens before the first evaluation. Products throw
/// NoProducts where the gradient is not that of a function. The first one of a surface that is due
/// for it costs 15 gradients more.
class ProbeLossSurface : public LossSurface, public ProvedProducts {
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
  double product_error() const override { return method_->error; }
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
  /// Sets the method, or confirms it.
  void prove();
  void fall_back(const ProductTrial& trial, std::string reason);
  /// Whether an autograd function that is not LibTorch's own takes part.
  bool is_foreign();
  /// Before the first gradient: that it is the same twice. NoProducts where there are none.
  void check_gradients_repeat();
  double parameter_norm() const;
  bool wide() const { return options_.dtype() == caffe2::TypeMeta::Make<double>(); }

  std::string name_;
  const ProbeLoss& loss_;
  SavedState& state_;
  ProductMethod* method_;
  bool asked_ = false;      // for a gradient
  bool proof_due_ = false;  // at the next product
  Tensors parameters_;      // those that are trained
  std::vector<Block> blocks_;
  int64_t dimension_ = 0;
  at::TensorOptions options_;
  Tensors graph_;  // gradients with their graph
  int64_t graph_position_ = 0;
  std::optional<double> graph_value_;
};

}  // namespace tycho
