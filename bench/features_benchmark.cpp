// What feature learning costs on the networks of overhead_benchmark, with 64 examples: a record of
// `features` in forward passes of the probe batch, and of `tangent_kernel` in gradients of one
// example.
//
//   features_benchmark [--repeats N] [--threads N]
#include <ATen/record_function.h>
#include <fmt/format.h>
#include <torch/torch.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "built_in.h"
#include "features/probe_pass.h"
#include "model_info.h"
#include "models.h"

namespace {

using torch::Tensor;
using Clock = std::chrono::steady_clock;

constexpr int64_t kExamples = 64;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? std::nan("") : values[values.size() / 2];
}

double seconds_of(const std::function<void()>& action) {
  const auto begin = Clock::now();
  action();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// A network and its output and loss on some of the examples.
struct Network {
  std::string name;
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(int64_t examples)> output;
  std::function<Tensor(const Tensor& output)> loss;
};

std::vector<Network> networks() {
  namespace nn = torch::nn;
  std::vector<Network> all;
  const auto cross_entropy = [](const Tensor& y) {
    return [y](const Tensor& z) {
      const Tensor rows = z.dim() > 2 ? z.flatten(0, 1) : z;
      return nn::functional::cross_entropy(rows, y.slice(0, 0, rows.size(0)));
    };
  };
  {
    nn::Sequential model(nn::Linear(784, 512), nn::ReLU(), nn::Linear(512, 512), nn::ReLU(),
                         nn::Linear(512, 10));
    const Tensor x = torch::randn({kExamples, 784});
    all.push_back({"MLP", model.ptr(),
                   [=](int64_t n) mutable { return model->forward(x.slice(0, 0, n)); },
                   cross_entropy(torch::randint(10, {kExamples}))});
  }
  {
    nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(1, 16, 3).padding(1)), nn::ReLU(),
                         nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(16, 32, 3).padding(1)),
                         nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(32 * 49, 10));
    const Tensor x = torch::randn({kExamples, 1, 28, 28});
    all.push_back({"CNN", model.ptr(),
                   [=](int64_t n) mutable { return model->forward(x.slice(0, 0, n)); },
                   cross_entropy(torch::randint(10, {kExamples}))});
  }
  {
    tycho::bench::Transformer model;
    const Tensor x = torch::randint(96, {kExamples, 64});
    all.push_back({"transformer", model.ptr(),
                   [=](int64_t n) mutable { return model->forward(x.slice(0, 0, n)); },
                   cross_entropy(torch::randint(96, {kExamples * 64}))});
  }
  return all;
}

struct Discard : tycho::Transfer {
  size_t send(const Tensor& numbers) override { return static_cast<size_t>(numbers.numel()); }
};

}  // namespace

int main(int argc, char** argv) {
  int repeats = 21;
  int threads = 2;
  CLI::App app{"Measures what feature learning costs."};
  app.add_option("--repeats", repeats, "of each measurement")->check(CLI::Range(3, 10000));
  app.add_option("--threads", threads, "of LibTorch")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  torch::set_num_threads(threads);
  torch::manual_seed(1);
  fmt::print(
      "| network | features, forward passes | representation | kernel of 64, gradients of one "
      "example | without the linearization |\n|---|---|---|---|---|\n");
  for (Network& network : networks()) {
    torch::optim::SGD optimizer(network.module->parameters(), 0.01);
    tycho::ModelFacts facts = tycho::describe(*network.module, optimizer);
    std::vector<tycho::ProbeLossSurface::Parameter> parameters;
    for (const auto& parameter : facts.info.parameters) {
      parameters.push_back({parameter.tensor, parameter.id});
    }
    tycho::ModelState model(*network.module);
    tycho::ProbeLoss loss;
    loss.output = [&](int64_t) { return network.output(kExamples); };
    loss.loss = [&](const Tensor& output, int64_t) { return network.loss(output); };
    tycho::ProbePassMemory memory;
    auto features = tycho::make_features_probe();
    auto representation = tycho::make_representation_probe();
    auto kernel = tycho::make_tangent_kernel_probe();
    for (auto* probe : {features.get(), representation.get(), kernel.get()}) {
      probe->setup(facts.info);
    }
    const auto observe = [&](tycho::Probe& probe, int64_t step) {
      const torch::NoGradGuard no_grad;
      const at::DisableRecordFunctionGuard unobserved;
      tycho::SavedState state(model, network.module->parameters());
      tycho::ProbePass pass(loss, state, facts.info, parameters, 0, probe.needs(), &memory);
      tycho::StepView view;
      view.step = step;
      view.features = &pass;
      Discard discard;
      (void)probe.observe(view, discard);
    };
    const auto products = [&] {
      const torch::NoGradGuard no_grad;
      const at::DisableRecordFunctionGuard unobserved;
      tycho::SavedState state(model, network.module->parameters());
      tycho::ProbePass pass(loss, state, facts.info, parameters, 0, kernel->needs(), &memory);
      (void)pass.tangent_kernel(kExamples, at::detail::createCPUGenerator(1));
    };
    std::vector<double> forward, gradient, of_features, of_representation, of_kernel, of_products;
    for (int64_t step = 0; step < repeats; ++step) {
      {
        const torch::NoGradGuard no_grad;
        forward.push_back(seconds_of([&] { (void)network.loss(network.output(kExamples)); }));
      }
      gradient.push_back(seconds_of([&] {
        (void)torch::autograd::grad({network.loss(network.output(1))},
                                    network.module->parameters());
      }));
      of_features.push_back(seconds_of([&] { observe(*features, step); }));
      of_representation.push_back(seconds_of([&] { observe(*representation, step); }));
      of_kernel.push_back(seconds_of([&] { observe(*kernel, step); }));
      of_products.push_back(seconds_of(products));
      const torch::NoGradGuard no_grad;
      for (auto& parameter : network.module->parameters()) {
        parameter.add_(torch::randn_like(parameter), 1e-3);
      }
    }
    fmt::print("| {} | {:.2f} | {:.2f} | {:.1f} | {:.1f} |\n", network.name,
               median(of_features) / median(forward), median(of_representation) / median(forward),
               median(of_kernel) / median(gradient), median(of_products) / median(gradient));
  }
  return 0;
}
