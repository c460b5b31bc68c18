#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

/// Curvature of the probe loss along its own gradient g. One gradient and one Hessian-vector
/// product. Ratios are not recorded where g or H g is zero.
class DirectionalSharpnessProbe : public Probe {
 public:
  std::string name() const override { return "directional_sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("directional_sharpness", "g'Hg/g'g", "1", run,
                         "Curvature of the probe loss along its gradient.", "theory T1.5"),
        define_statistic("gradient_curvature_overlap", "g'Hg/(|g||Hg|)", "1", run,
                         "Cosine between the probe loss's gradient and its image under the "
                         "Hessian: near 1 if the gradient lies in the top of the spectrum.",
                         "Gur-Ari et al. 2018"),
        define_statistic("probe_grad_norm_sq", "|g|^2", "1", run,
                         "Squared norm of the gradient of the probe loss.",
                         "Session::set_probe_loss"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    if (step.surface == nullptr) return nullptr;
    const at::Tensor gradient = step.surface->gradient(/*products_follow=*/true);
    const at::Tensor image = step.surface->hessian_product(gradient);
    const double gg = inner_product(gradient, gradient);
    const double gh = inner_product(gradient, image);
    const double hh = inner_product(image, image);
    return [=](const Arrived&, Recorder& recorder) {
      recorder.run("probe_grad_norm_sq", gg, Recorder::kUnknown);
      if (gg == 0) return;
      recorder.run("directional_sharpness", gh / gg, Recorder::kUnknown);
      if (hh != 0) {
        recorder.run("gradient_curvature_overlap", gh / std::sqrt(gg * hh), Recorder::kUnknown);
      }
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_directional_sharpness_probe() {
  return std::make_unique<DirectionalSharpnessProbe>();
}

}  // namespace tycho
