#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "not_observed.h"

namespace tycho {
namespace {

// Of the two largest eigenvalues; the eigenvector's error goes with its square root.
constexpr double kTolerance = 1e-4;
constexpr int64_t kMaxProducts = 100;
constexpr const char* kNotObserved = "central_flow_not_observed";

/// The oscillation at the edge of stability against the central flow (theory T2.3). At the edge the
/// parameters oscillate about a slow path w along u, the top eigenvector, and change side at each
/// step: the update is -2 x u there, and the middle of the step is on the path. Measured is the
/// variance x^2 = (u.update)^2 / 4 and the loss above that at the middle. Predicted is the variance
/// that holds the sharpness S = u'Hu where it is, from dw/dt ~ -grad L - 1/2 x^2 grad S:
///   x^2 = -2 <P grad L, P grad S> / |P grad S|^2,   P = 1 - uu',
/// all at the middle of the step, with coupled weight decay in L and S. grad S is a difference of
/// two Hessian products along u. Single values fluctuate: averages over many steps are compared.
/// For SGD, with momentum or without, with one learning rate. About 20 to 40 products.
class CentralFlowProbe : public Probe {
 public:
  std::string name() const override { return "central_flow"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    const char* source = "Cohen et al. 2024, arXiv 2410.24206; theory T2.3";
    return {
        define_statistic("central_flow_variance", "(u.dtheta)^2/4", "1", run,
                         "Quarter of the squared update along the top Hessian eigenvector at the "
                         "middle of the step: the variance of an oscillation that changes its sign "
                         "at every step.",
                         source),
        define_statistic("central_flow_variance_predicted", "sigma^2", "1", run,
                         "2 <-P grad L, P grad S>/|P grad S|^2 at the middle of the step, with S "
                         "the sharpness and P the projection across its eigenvector.",
                         source),
        define_statistic("central_flow_loss_excess", "dL", "1", run,
                         "Mean of the probe loss before and after the step, minus that at its "
                         "middle.",
                         source),
        define_statistic("central_flow_sharpness", "S", "1", run,
                         "Largest eigenvalue of the Hessian at the middle of the step, coupled "
                         "decay included.",
                         source),
        define_statistic("central_flow_second_eigenvalue", "lambda_2", "1", run,
                         "The next eigenvalue there: far below the threshold if one mode is "
                         "critical.",
                         source),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = needs.update = needs.stability = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr || step.stability == nullptr || !step.update.defined()) return nullptr;
    const Stability& stability = *step.stability;
    if (!stability.unknown.empty() || stability.preconditioner.defined()) {
      return not_observed(kNotObserved,
                          "the central flow is derived for SGD with one learning rate");
    }
    const at::Tensor& update = step.update;
    if (inner_product(update, update) == 0) return nullptr;
    const double after = surface->value().item<double>();
    surface->move(-update);
    const double before = surface->value().item<double>();
    const at::Tensor middle = update * -0.5;
    surface->move(middle);
    const double between = surface->value().item<double>();

    const auto product = [&](const at::Tensor& v) {
      const at::Tensor image = surface->hessian_product(v);
      return stability.decay.defined() ? image + stability.decay * v : image;
    };
    EigenOptions options;
    options.count = 2;
    options.tolerance = kTolerance;
    options.max_products = kMaxProducts;
    at::Tensor slope = surface->gradient(/*products_follow=*/true);
    const Eigenpairs found =
        lanczos_.largest(product, surface->dimension(), surface->options(), options, step, 7);
    if (!found.finite) {
      return not_observed(kNotObserved, "a product with the Hessian is not finite");
    }
    const at::Tensor top = found.vectors[0];
    const at::Tensor parameters = parameters_of(step, *surface);
    double excess = 0.5 * (before + after) - between;
    if (stability.decay.defined()) {
      slope = slope + stability.decay * (parameters + middle);
      excess += 0.125 * inner_product(stability.decay * update, update);
    }
    const bool wide = surface->options().dtype() == caffe2::TypeMeta::Make<double>();
    const double size = std::max(std::sqrt(inner_product(parameters, parameters)), 1e-3);
    const double reach = (wide ? 1e-4 : 3e-3) * size;
    surface->move(middle + top * reach);
    at::Tensor bend = surface->hessian_product(top);
    surface->move(middle - top * reach);
    bend = (bend - surface->hessian_product(top)) / (2 * reach);
    surface->move({});

    const double along = inner_product(top, update);
    const double slope_along = inner_product(top, slope);
    const double bend_along = inner_product(top, bend);
    const double across = inner_product(slope, bend) - slope_along * bend_along;
    const double bend_across = inner_product(bend, bend) - bend_along * bend_along;
    return [=](const Arrived&, Recorder& recorder) {
      const double unknown = Recorder::kUnknown;
      recorder.run("central_flow_variance", along * along / 4, unknown);
      recorder.run("central_flow_loss_excess", excess, unknown);
      recorder.run("central_flow_sharpness", found.values[0], unknown);
      if (found.values.size() > 1) {
        recorder.run("central_flow_second_eigenvalue", found.values[1], unknown);
      }
      if (bend_across > 0) {
        recorder.run("central_flow_variance_predicted", -2 * across / bend_across, unknown);
      }
    };
  }

 private:
  /// After the update, flat. Known wherever the update is.
  static at::Tensor parameters_of(const StepView& step, const LossSurface& surface) {
    std::vector<at::Tensor> parts;
    for (const LossSurface::Block& block : surface.blocks()) {
      parts.push_back(step.model->parameters[block.parameter].tensor.detach().reshape({-1}).to(
          surface.options()));
    }
    return at::cat(parts);
  }

  WarmLanczos lanczos_;
};

}  // namespace

std::unique_ptr<Probe> make_central_flow_probe() { return std::make_unique<CentralFlowProbe>(); }

}  // namespace tycho
