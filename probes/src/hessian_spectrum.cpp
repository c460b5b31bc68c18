#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "tycho/product_error.h"

namespace tycho {
namespace {

constexpr int64_t kFewest = 10;        // eigenvalues
constexpr int64_t kBeyondClasses = 3;  // what is to be seen of the bulk behind the outliers
constexpr int64_t kMost = 64;
constexpr int64_t kQuadratureSteps = 30;
constexpr int64_t kQuadratureStarts = 2;

/// The Hessian of the probe loss as a whole: its 10 largest eigenvalues, or as many as there are
/// classes and 3 more (at most 64) where the loss is a cross-entropy, with eigenvectors, how much
/// of the gradient they hold, and the spectral density by stochastic Lanczos quadrature (nodes and
/// weights of 2 random starts with 30 products each; the weights sum to 1). About 60 products for
/// the density, 20 to 150 for the eigenvalues and up to 150 to find repeated ones: a probe for long
/// intervals.
class HessianSpectrumProbe : public Probe {
 public:
  std::string name() const override { return "hessian_spectrum"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    const std::vector<v1::Scope> index = {v1::SCOPE_INDEX};
    return {
        define_statistic(
            "hessian_eigenvalue", "lambda_i", "1", index,
            "The largest eigenvalues of the Hessian of the probe loss, descending: 10, or the "
            "number of classes plus 3.",
            "theory T2.10"),
        define_statistic("hessian_eigenvalue_error_bound", "|d lambda_i|", "1", index,
                         "Bound on the distance of hessian_eigenvalue from an eigenvalue, from "
                         "the residuals of Lanczos. Copies of a repeated eigenvalue may be "
                         "missed in networks of more than 150 parameters.",
                         "Parlett 1998, ch. 11"),
        define_statistic("top_subspace_fraction", "|P_k g|^2/|g|^2", "1", run,
                         "Share of the probe loss's gradient in the space of the eigenvectors of "
                         "hessian_eigenvalue.",
                         "Gur-Ari et al. 2018"),
        define_statistic("spectral_density_node", "lambda", "1", index,
                         "Nodes of the spectral density of the Hessian by stochastic Lanczos "
                         "quadrature, descending.",
                         "Ubaru, Chen & Saad 2017"),
        define_statistic("spectral_density_weight", "phi", "1", index,
                         "Share of the eigenvalues that each node stands for; they sum to 1.",
                         "Ubaru, Chen & Saad 2017"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr) return nullptr;
    const at::Generator generator = own_generator(step, 5);
    const LinearMap matrix = [&](const at::Tensor& v) { return surface->hessian_product(v); };
    EigenOptions options;
    options.count = count_of(surface);
    options.max_products = 150;
    options.repeated = true;
    const Eigenpairs found =
        lanczos_.largest(matrix, surface->dimension(), surface->options(), options, step, 6);
    double fraction = std::nan("");
    if (found.finite) {
      const at::Tensor gradient = surface->gradient();
      const double square = inner_product(gradient, gradient);
      const at::Tensor inside = at::mv(found.vectors, gradient);
      fraction = inner_product(inside, inside) / square;
    }
    std::vector<std::pair<double, double>> density;
    for (int64_t start = 0; start < kQuadratureStarts; ++start) {
      const Quadrature part =
          lanczos_quadrature(matrix, normal_vector(*surface, generator), kQuadratureSteps);
      for (size_t i = 0; i < part.nodes.size(); ++i) {
        density.emplace_back(part.nodes[i],
                             part.weights[i] / static_cast<double>(kQuadratureStarts));
      }
    }
    std::sort(density.rbegin(), density.rend());
    const double inexact =
        found.finite ? product_error_of(*surface) * std::abs(found.values[0]) : 0;
    return [found, fraction, density, inexact](const Arrived&, Recorder& recorder) {
      if (!found.finite) {
        recorder.event(v1::Event::NON_FINITE, "hessian_spectrum_not_finite",
                       "a Hessian-vector product is not finite: no spectrum is recorded",
                       v1::SCOPE_RUN, 0);
        return;
      }
      if (!found.converged) {
        recorder.event(v1::Event::NOTICE, "hessian_eigenvalues_not_converged",
                       "not all of the largest eigenvalues reached their tolerance: error bounds "
                       "say how near they are",
                       v1::SCOPE_RUN, 0);
      }
      for (size_t i = 0; i < found.values.size(); ++i) {
        const auto position = static_cast<uint32_t>(i);
        recorder.index("hessian_eigenvalue", position, found.values[i], Recorder::kUnknown);
        recorder.index("hessian_eigenvalue_error_bound", position, found.bounds[i] + inexact,
                       Recorder::kUnknown);
      }
      if (std::isfinite(fraction)) {
        recorder.run("top_subspace_fraction", fraction, Recorder::kUnknown);
      }
      for (size_t i = 0; i < density.size(); ++i) {
        const auto position = static_cast<uint32_t>(i);
        recorder.index("spectral_density_node", position, density[i].first, Recorder::kUnknown);
        recorder.index("spectral_density_weight", position, density[i].second, Recorder::kUnknown);
      }
    };
  }

 private:
  static int64_t count_of(LossSurface* surface) {
    if (!surface->has_output()) return kFewest;
    const int64_t classes = surface->output_loss().classes;
    return std::clamp(classes + kBeyondClasses, kFewest, kMost);
  }

  WarmLanczos lanczos_;
};

}  // namespace

std::unique_ptr<Probe> make_hessian_spectrum_probe() {
  return std::make_unique<HessianSpectrumProbe>();
}

}  // namespace tycho
