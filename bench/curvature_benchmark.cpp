// What curvature costs on the transformer of overhead_benchmark: a Hessian-vector product in
// gradients, its memory, and products to the largest eigenvalue, against power iteration, while the
// network trains.
//
//   curvature_benchmark [--steps N] [--every N] [--threads N]
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "curvature/probe_loss_surface.h"
#include "curvature_support.h"
#include "models.h"
#include "torch_compat.h"
#include "tycho/krylov.h"

namespace {

using torch::Tensor;
using tycho::ProbeLossSurface;
using Clock = std::chrono::steady_clock;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? std::nan("") : values[values.size() / 2];
}

/// Bytes that LibTorch's CPU allocator holds, and the most it held.
class MemoryWatch : public c10::MemoryReportingInfoBase {
 public:
  std::atomic<int64_t> held{0};
  std::atomic<int64_t> most{0};
  void reportMemoryUsage(void*, int64_t size, tycho::compat::MemoryTotal,
                         tycho::compat::MemoryTotal, c10::Device) override {
    held += size;
    most = std::max(most.load(), held.load());
  }
  bool memoryProfilingEnabled() const override { return true; }
};

int64_t peak_of(const std::function<void()>& action) {
  auto watch = std::make_shared<MemoryWatch>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, watch);
    action();
  }
  return watch->most;
}

/// Products that power iteration needs from `start` until its Rayleigh quotient is within
/// `tolerance` of `exact`.
int64_t power_iteration(const tycho::LinearMap& matrix, Tensor vector, double exact,
                        double tolerance, int64_t limit) {
  for (int64_t products = 1; products <= limit; ++products) {
    vector = vector / vector.norm();
    const Tensor image = matrix(vector);
    if (std::abs(tycho::inner_product(vector, image) - exact) <= tolerance * std::abs(exact)) {
      return products;
    }
    vector = image;
  }
  return limit;
}

}  // namespace

int main(int argc, char** argv) {
  int64_t steps = 400;
  int64_t every = 10;
  int threads = 2;
  CLI::App app{"Measures what curvature costs."};
  app.add_option("--steps", steps, "training steps")->check(CLI::Range(10, 1000000));
  app.add_option("--every", every, "steps between observations")->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads, "of LibTorch")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  torch::set_num_threads(threads);
  torch::manual_seed(1);
  tycho::bench::Trainer trainer = tycho::bench::transformer();
  tycho::ModelState model(*trainer.module);
  tycho::ProbeLoss loss;
  loss.loss = [&](const Tensor&, int64_t) { return trainer.loss(0); };
  tycho::ProductMethod method;
  std::vector<ProbeLossSurface::Parameter> parameters;
  for (const Tensor& parameter : trainer.module->parameters()) {
    parameters.push_back({parameter, static_cast<uint32_t>(parameters.size())});
  }

  std::vector<double> gradient_seconds, product_seconds, first_seconds;
  std::vector<double> warm_products, power_products, errors;
  int64_t gradient_memory = 0;
  int64_t product_memory = 0;
  tycho::WarmLanczos lanczos;
  for (int64_t step = 0; step < steps; ++step) {
    trainer.optimizer->zero_grad();
    trainer.loss(step).backward();
    trainer.optimizer->step();
    if (step % every != 0) continue;
    tycho::SavedState state(model, trainer.module->parameters());
    ProbeLossSurface surface("probe_loss", loss, state, parameters, &method);
    const tycho::LinearMap matrix = [&](const Tensor& v) { return surface.hessian_product(v); };
    const auto timed = [](const std::function<void()>& action) {
      const auto begin = Clock::now();
      action();
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    const Tensor direction = torch::randn({surface.dimension()});
    if (step == 0) (void)matrix(direction);  // decides how products are made
    const auto fresh = [&] {
      tycho::SavedState other_state(model, trainer.module->parameters());
      ProbeLossSurface other("probe_loss", loss, other_state, parameters, &method);
      (void)other.hessian_product(direction);
    };
    const auto gradient = [&] {
      tycho::SavedState other_state(model, trainer.module->parameters());
      ProbeLossSurface other("probe_loss", loss, other_state, parameters, &method);
      (void)other.gradient();
    };
    gradient_seconds.push_back(timed(gradient));
    first_seconds.push_back(timed(fresh));
    (void)matrix(direction);
    product_seconds.push_back(timed([&] { (void)matrix(direction); }));
    gradient_memory = std::max(gradient_memory, peak_of(gradient));
    product_memory = std::max(product_memory, peak_of(fresh));

    tycho::StepView view;
    view.step = step;
    tycho::EigenOptions options;
    const Tensor before = warm_products.empty() ? Tensor() : lanczos.leading()[0].clone();
    const tycho::Eigenpairs found =
        lanczos.largest(matrix, surface.dimension(), surface.options(), options, view, 1);
    warm_products.push_back(static_cast<double>(found.products));
    if (!before.defined()) continue;
    // What is right, by ten times the accuracy.
    tycho::EigenOptions exact = options;
    exact.tolerance = 1e-5;
    exact.max_products = 200;
    const double reference = tycho::largest_eigenpairs(matrix, found.leading.sum(0), exact,
                                                       at::detail::createCPUGenerator(1))
                                 .values[0];
    errors.push_back(std::abs(found.values[0] - reference) / std::abs(reference));
    power_products.push_back(
        static_cast<double>(power_iteration(matrix, before, reference, 1e-3, 300)));
  }
  fmt::print("| what | measured |\n|---|---|\n");
  fmt::print("| Hessian-vector product, graph made anew, in gradients | {:.2f} |\n",
             median(first_seconds) / median(gradient_seconds));
  fmt::print("| Hessian-vector product after the first, in gradients | {:.2f} |\n",
             median(product_seconds) / median(gradient_seconds));
  fmt::print("| its peak memory, in that of a gradient | {:.2f} |\n",
             static_cast<double>(product_memory) / static_cast<double>(gradient_memory));
  fmt::print("| products to the sharpness, median over training | {} |\n", median(warm_products));
  fmt::print("| its relative error, median and largest | {:.1e}, {:.1e} |\n", median(errors),
             errors.empty() ? 0 : *std::max_element(errors.begin(), errors.end()));
  fmt::print("| products of warm power iteration to 1e-3, median (300: not reached) | {} |\n",
             median(power_products));
  return 0;
}
