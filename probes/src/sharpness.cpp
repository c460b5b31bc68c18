#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "not_observed.h"
#include "tycho/product_error.h"

namespace tycho {
namespace {

constexpr double kSharpnessTolerance = 1e-3;
constexpr int64_t kSharpnessProducts = 100;

EigenOptions one_to_tolerance() {
  EigenOptions options;
  options.tolerance = kSharpnessTolerance;
  options.max_products = kSharpnessProducts;
  return options;
}

void say_not_finite(const std::string& what, Recorder& recorder) {
  recorder.event(v1::Event::NON_FINITE, what + "_not_finite",
                 "a product with the matrix of " + what + " is not finite: it is not recorded",
                 v1::SCOPE_RUN, 0);
}

void say_not_converged(const std::string& what, const Eigenpairs& found, Recorder& recorder) {
  if (found.converged) return;
  recorder.event(v1::Event::NOTICE, what + "_not_converged",
                 what + " did not reach its tolerance in " + std::to_string(found.products) +
                     " products: its error bound says how near it is",
                 v1::SCOPE_RUN, 0);
}

/// The largest eigenvalue of the Hessian of the probe loss, by Lanczos warm-started from the
/// directions that led last, to a relative error bound of 1e-3. Run scope, and the eigenvector's
/// squared entries by layer and parameter. At most 100 products (docs/performance.md).
class SharpnessProbe : public Probe {
 public:
  std::string name() const override { return "sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("sharpness", "lambda_max(H)", "1", run,
                         "Largest (algebraic) eigenvalue of the Hessian of the probe loss, at the "
                         "parameters after the update.",
                         "Cohen et al. 2021"),
        define_statistic(
            "sharpness_error_bound", "|d lambda|", "1", run,
            "Bound on the error of sharpness, from the residuals of Lanczos and the error found "
            "in Hessian-vector products.",
            "Parlett 1998, ch. 11"),
        define_statistic("sharpness_products", "n_Hv", "products", run,
                         "Hessian-vector products spent on sharpness.", "tycho/krylov.h"),
        define_statistic("top_eigenvector_share", "|u_l|^2", "1",
                         {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER},
                         "Share of the layer in the squared norm of the eigenvector of sharpness: "
                         "which layer limits the learning rate.",
                         "theory T1.5"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr) return nullptr;
    const Eigenpairs found =
        lanczos_.largest([&](const at::Tensor& v) { return surface->hessian_product(v); },
                         surface->dimension(), surface->options(), one_to_tolerance(), step, 1);
    ByParameter shares;
    if (found.finite) {
      shares = inner_products(*surface, model_, found.vectors[0], found.vectors[0]);
    }
    return [found, shares, inexact = product_error_of(*surface)](const Arrived&,
                                                                 Recorder& recorder) {
      if (!found.finite) return say_not_finite("sharpness", recorder);
      say_not_converged("sharpness", found, recorder);
      recorder.run("sharpness", found.values[0], Recorder::kUnknown);
      recorder.run("sharpness_error_bound", found.bounds[0] + inexact * std::abs(found.values[0]),
                   Recorder::kUnknown);
      recorder.run("sharpness_products", static_cast<double>(found.products), Recorder::kUnknown);
      shares.record("top_eigenvector_share", recorder);
    };
  }

 private:
  ModelInfo model_;
  WarmLanczos lanczos_;
};

/// The same of P^-1/2 (H + D) P^-1/2, as the optimizer in use feels it, with the value at which
/// that optimizer is at the edge of stability. Nothing for optimizers without a known threshold.
class PreconditionedSharpnessProbe : public Probe {
 public:
  std::string name() const override { return "preconditioned_sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("preconditioned_sharpness", "lambda_max(P^-1 H)", "1", run,
                         "Largest eigenvalue of P^-1/2 (H + D) P^-1/2: H the Hessian of the probe "
                         "loss, P the optimizer's preconditioner (1 for SGD), D coupled weight "
                         "decay. Learning rates of other parameter groups enter P relative to the "
                         "first group's.",
                         "Cohen et al. 2022"),
        define_statistic("preconditioned_sharpness_error_bound", "|d lambda|", "1", run,
                         "Bound on the error of preconditioned_sharpness.", "Parlett 1998, ch. 11"),
        define_statistic("stability_threshold", "c / eta", "1", run,
                         "Value of preconditioned_sharpness at which the optimizer, at its "
                         "current learning rate, is at the edge of stability on a quadratic.",
                         "theory T1.5"),
        define_statistic("preconditioned_eigenvector_share", "|u_l|^2", "1",
                         {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER},
                         "Share of the layer in the squared norm of the eigenvector of "
                         "preconditioned_sharpness.",
                         "theory T1.5"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = needs.stability = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr || step.stability == nullptr) return nullptr;
    const Stability& stability = *step.stability;
    if (!stability.unknown.empty()) {
      return not_observed("preconditioned_sharpness_not_observed",
                          "preconditioned sharpness: " + stability.unknown);
    }
    const at::Tensor root =
        stability.preconditioner.defined() ? stability.preconditioner.rsqrt() : at::Tensor();
    const Eigenpairs found = lanczos_.largest(
        [&](const at::Tensor& v) {
          const at::Tensor inner = root.defined() ? v * root : v;
          at::Tensor product = surface->hessian_product(inner);
          if (stability.decay.defined()) product = product + stability.decay * inner;
          return root.defined() ? product * root : product;
        },
        surface->dimension(), surface->options(), one_to_tolerance(), step, 2);
    ByParameter shares;
    if (found.finite) {
      shares = inner_products(*surface, model_, found.vectors[0], found.vectors[0]);
    }
    return [found, shares, threshold = stability.threshold, inexact = product_error_of(*surface)](
               const Arrived&, Recorder& recorder) {
      if (!found.finite) return say_not_finite("preconditioned_sharpness", recorder);
      say_not_converged("preconditioned_sharpness", found, recorder);
      recorder.run("preconditioned_sharpness", found.values[0], Recorder::kUnknown);
      recorder.run("preconditioned_sharpness_error_bound",
                   found.bounds[0] + inexact * std::abs(found.values[0]), Recorder::kUnknown);
      recorder.run("stability_threshold", threshold, Recorder::kUnknown);
      shares.record("preconditioned_eigenvector_share", recorder);
    };
  }

 private:
  ModelInfo model_;
  WarmLanczos lanczos_;
};

}  // namespace

std::unique_ptr<Probe> make_sharpness_probe() { return std::make_unique<SharpnessProbe>(); }
std::unique_ptr<Probe> make_preconditioned_sharpness_probe() {
  return std::make_unique<PreconditionedSharpnessProbe>();
}

}  // namespace tycho
