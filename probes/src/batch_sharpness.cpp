#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

constexpr int64_t kBatches = 8;

/// Curvature along the gradient of fresh batches (Andreyev & Beneventano 2024, contested), up to 8
/// of them an observation: a gradient and a product each, and one more product with the probe
/// loss's Hessian where it is evaluated at the step. Batches without a gradient are left out. Where
/// no batches were given it is the batch of the step itself, at the weights before its update, on
/// which they do not depend: one, and no standard error.
class BatchSharpnessProbe : public Probe {
 public:
  std::string name() const override { return "batch_sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("batch_sharpness", "E[g_B'H_B g_B/|g_B|^2]", "1", run,
                         "Mean over fresh batches of the curvature of the batch's loss along its "
                         "own gradient.",
                         "Andreyev & Beneventano 2024"),
        define_statistic("batch_sharpness_pooled", "E[g_B'H_B g_B]/E|g_B|^2", "1", run,
                         "Ratio of the means, which is not the mean of the ratios.",
                         "Andreyev & Beneventano 2024"),
        define_statistic("gradient_noise_interaction", "E[g_B'H g_B]/|G|^2", "1", run,
                         "Curvature of the probe loss along gradients of fresh batches, relative "
                         "to its own gradient; near 2/eta in every stationary state.",
                         "theory T1.4"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.batch_surface = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    if (!step.batch_surface) return nullptr;
    std::vector<at::Tensor> gradients;
    std::vector<double> curvatures;
    std::vector<double> squares;
    for (int64_t i = 0; i < kBatches; ++i) {
      const std::unique_ptr<LossSurface> batch = step.batch_surface();
      if (!batch) break;
      const at::Tensor gradient = batch->gradient(/*products_follow=*/true);
      const at::Tensor image = batch->hessian_product(gradient);
      const double square = inner_product(gradient, gradient);
      if (!(square > 0)) continue;
      squares.push_back(square);
      curvatures.push_back(inner_product(gradient, image));
      if (step.surface != nullptr) gradients.push_back(gradient);
    }
    double interaction = std::nan("");
    if (step.surface != nullptr && !gradients.empty()) {
      const at::Tensor full = step.surface->gradient(/*products_follow=*/true);
      double sum = 0;
      for (const at::Tensor& gradient : gradients) {
        sum += inner_product(gradient, step.surface->hessian_product(gradient));
      }
      interaction = sum / static_cast<double>(gradients.size()) / inner_product(full, full);
    }
    return [=](const Arrived&, Recorder& recorder) {
      const auto count = static_cast<double>(squares.size());
      if (count == 0) return;
      double mean = 0;
      double curvature = 0;
      double square = 0;
      for (size_t i = 0; i < squares.size(); ++i) {
        mean += curvatures[i] / squares[i] / count;
        curvature += curvatures[i];
        square += squares[i];
      }
      double spread = 0;
      for (size_t i = 0; i < squares.size(); ++i) {
        const double difference = curvatures[i] / squares[i] - mean;
        spread += difference * difference;
      }
      recorder.run("batch_sharpness", mean,
                   count > 1 ? std::sqrt(spread / (count - 1) / count) : Recorder::kUnknown);
      recorder.run("batch_sharpness_pooled", curvature / square, Recorder::kUnknown);
      if (std::isfinite(interaction)) {
        recorder.run("gradient_noise_interaction", interaction, Recorder::kUnknown);
      }
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_batch_sharpness_probe() {
  return std::make_unique<BatchSharpnessProbe>();
}

}  // namespace tycho
