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

/// Rayleigh quotients of power iteration from `start`, one for each product.
std::vector<double> power_iteration(const tycho::LinearMap& matrix, Tensor vector, int64_t limit) {
  std::vector<double> values;
  for (int64_t products = 0; products < limit; ++products) {
    vector = vector / vector.norm();
    const Tensor image = matrix(vector);
    values.push_back(tycho::inner_product(vector, image));
    vector = image;
  }
  return values;
}

/// Products until the value is within `tolerance` of `exact`; one more than there are if never.
double products_to(const std::vector<double>& values, double exact, double tolerance) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::abs(values[i] - exact) <= tolerance * std::abs(exact)) {
      return static_cast<double>(i + 1);
    }
  }
  return static_cast<double>(values.size() + 1);
}

/// Both methods from one start, to 1e-3 and to 1e-5.
struct Race {
  std::vector<double> lanczos[2], power[2];

  void run(const tycho::LinearMap& matrix, const Tensor& start, double exact) {
    constexpr double kTolerances[] = {1e-3, 1e-5};
    tycho::EigenOptions options;
    options.tolerance = 1e-7;
    options.max_products = 60;
    const auto found =
        tycho::largest_eigenpairs(matrix, start, options, at::detail::createCPUGenerator(1));
    const auto powers = power_iteration(matrix, start, 150);
    for (int i = 0; i < 2; ++i) {
      lanczos[i].push_back(products_to(found.history, exact, kTolerances[i]));
      power[i].push_back(products_to(powers, exact, kTolerances[i]));
    }
  }
  std::string row() const {
    return fmt::format("{} to {} | {} to {}", median(lanczos[0]), median(power[0]),
                       median(lanczos[1]), median(power[1]));
  }
};

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
  tycho::ProbeLoss keeping = loss;
  keeping.keep_graph = true;
  tycho::ProductMethod method;
  std::vector<ProbeLossSurface::Parameter> parameters;
  for (const Tensor& parameter : trainer.module->parameters()) {
    parameters.push_back({parameter, static_cast<uint32_t>(parameters.size())});
  }

  std::vector<double> gradient_seconds, product_seconds, kept_seconds;
  std::vector<double> warm_products, errors;
  Race warm, cold;
  int64_t gradient_memory = 0;
  int64_t product_memory = 0;
  int64_t kept_memory = 0;
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
    const auto gradient = [&] { (void)surface.gradient(); };
    const auto product = [&] { (void)matrix(direction); };
    gradient_seconds.push_back(timed(gradient));
    product_seconds.push_back(timed(product));
    gradient_memory = std::max(gradient_memory, peak_of(gradient));
    product_memory = std::max(product_memory, peak_of(product));
    {
      ProbeLossSurface kept("probe_loss", keeping, state, parameters, &method);
      const auto another = [&] { (void)kept.hessian_product(direction); };
      kept_memory = std::max(kept_memory, peak_of(another));
      kept_seconds.push_back(timed(another));
    }

    tycho::StepView view;
    view.step = step;
    tycho::EigenOptions options;
    const Tensor before = warm_products.empty() ? Tensor() : lanczos.leading()[0].clone();
    const tycho::Eigenpairs found =
        lanczos.largest(matrix, surface.dimension(), surface.options(), options, view, 1);
    warm_products.push_back(static_cast<double>(found.products));
    if (!before.defined() || step % (5 * every) != 0) {
      state.restore();
      continue;
    }
    tycho::EigenOptions exact = options;
    exact.tolerance = 1e-7;
    exact.max_products = 200;
    const double reference = tycho::largest_eigenpairs(matrix, found.leading.sum(0), exact,
                                                       at::detail::createCPUGenerator(1))
                                 .values[0];
    errors.push_back(std::abs(found.values[0] - reference) / std::abs(reference));
    warm.run(matrix, before, reference);
    cold.run(matrix, torch::randn({surface.dimension()}), reference);
    state.restore();
  }
  fmt::print("| what | measured |\n|---|---|\n");
  const auto in_gradients = [&](const std::vector<double>& seconds, int64_t memory) {
    return fmt::format("{:.2f}, {:.2f}", median(seconds) / median(gradient_seconds),
                       static_cast<double>(memory) / static_cast<double>(gradient_memory));
  };
  fmt::print("| gradient: time, peak memory | {:.1f} ms, {:.1f} MB |\n",
             1e3 * median(gradient_seconds), 1e-6 * static_cast<double>(gradient_memory));
  fmt::print("| Hessian-vector product in gradients: time, peak memory | {} |\n",
             in_gradients(product_seconds, product_memory));
  fmt::print("| the same with keep_graph, after the first | {} |\n",
             in_gradients(kept_seconds, kept_memory));
  fmt::print("| products to the sharpness, median over training | {} |\n", median(warm_products));
  fmt::print("| its relative error, median and largest | {:.1e}, {:.1e} |\n", median(errors),
             errors.empty() ? 0 : *std::max_element(errors.begin(), errors.end()));
  fmt::print("\n| products, Lanczos to power iteration (medians) | error 1e-3 | 1e-5 |\n");
  fmt::print("|---|---|---|\n| from the eigenvector of {} steps before | {} |\n", every,
             warm.row());
  fmt::print("| from a random vector | {} |\n", cold.row());
  return 0;
}
