#include <ATen/ATen.h>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

/// The largest eigenvalue of each parameter's own block of the Hessian of the probe loss, to a
/// relative error bound of 1e-2, by Lanczos warm-started from the block's last eigenvector. Costs a
/// few products per parameter, each cheaper than one with the whole Hessian.
class BlockSharpnessProbe : public Probe {
 public:
  std::string name() const override { return "block_sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("block_sharpness", "lambda_max(H_ll)", "1", {v1::SCOPE_PARAMETER},
                             "Largest eigenvalue of the parameter's own block of the Hessian of "
                             "the probe loss; never above sharpness.",
                             "theory T1.5")};
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr) return nullptr;
    const auto& blocks = surface->blocks();
    lanczos_.resize(blocks.size());
    std::vector<std::pair<uint32_t, double>> values;
    bool converged = true;
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].parameter == LossSurface::kNoParameter || blocks[i].size == 0) continue;
      EigenOptions options;
      options.tolerance = 1e-2;
      options.max_products = 50;
      const Eigenpairs found =
          lanczos_[i].largest([&](const at::Tensor& v) { return surface->block_product(i, v); },
                              blocks[i].size, surface->options(), options, step, 1000 + i);
      if (!found.finite) continue;
      converged = converged && found.converged;
      values.emplace_back(blocks[i].parameter, found.values[0]);
    }
    return [values, converged](const Arrived&, Recorder& recorder) {
      if (!converged) {
        recorder.event(v1::Event::NOTICE, "block_sharpness_not_converged",
                       "a block's sharpness did not reach 1 % in 50 products: it may be larger",
                       v1::SCOPE_RUN, 0);
      }
      for (const auto& [id, value] : values) {
        recorder.parameter("block_sharpness", id, value, Recorder::kUnknown);
      }
    };
  }

 private:
  std::vector<WarmLanczos> lanczos_;
};

}  // namespace

std::unique_ptr<Probe> make_block_sharpness_probe() {
  return std::make_unique<BlockSharpnessProbe>();
}

}  // namespace tycho
