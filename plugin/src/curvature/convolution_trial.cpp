#include "curvature/convolution_trial.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <set>
#include <tuple>

#include "curvature/product_proof.h"

namespace tycho {
namespace {

constexpr int kTrials = 8;
constexpr int64_t kExamples = 4;
constexpr int64_t kOutputs = 12;  // in each spatial dimension of the result
constexpr double kAllowed = 1e-3;

at::Tensor input_gradient(const at::Tensor& output_gradient, const at::Tensor& input,
                          const at::Tensor& kernel, int64_t groups) {
  const std::vector<int64_t> ones(static_cast<size_t>(kernel.dim() - 2), 1);
  const std::vector<int64_t> zeros(ones.size(), 0);
  return std::get<0>(at::convolution_backward(output_gradient, input, kernel, c10::nullopt, ones,
                                              zeros, ones, /*transposed=*/false, zeros, groups,
                                              {true, false, false}));
}

bool is_wrong(at::IntArrayRef shape, int64_t groups) {
  at::Generator generator = at::detail::createCPUGenerator(1);
  std::vector<int64_t> input_shape = {kExamples, shape[1] * groups};
  std::vector<int64_t> output_shape = {kExamples, shape[0]};
  for (size_t i = 2; i < shape.size(); ++i) {
    input_shape.push_back(kOutputs + shape[i] - 1);
    output_shape.push_back(kOutputs);
  }
  const auto random = [&](at::IntArrayRef sizes) {
    return at::randn(sizes, generator, at::TensorOptions(at::kFloat));
  };
  const at::Tensor kernel = random(shape);
  const at::Tensor input = random(input_shape);
  const at::Tensor gradient = random(output_shape);
  const at::Tensor right = input_gradient(gradient.to(at::kDouble), input.to(at::kDouble),
                                          kernel.to(at::kDouble), groups);
  const double size = right.norm().item<double>();
  for (int trial = 0; trial < kTrials; ++trial) {
    poison_free_memory(kernel.options());
    const at::Tensor found = input_gradient(gradient, input, kernel, groups);
    const double error = (found.to(at::kDouble) - right).norm().item<double>();
    if (!(error <= kAllowed * size)) return true;
  }
  return false;
}

}  // namespace

std::string faulty_convolution(const std::vector<at::Tensor>& parameters) {
  std::set<std::vector<int64_t>> tried;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.scalar_type() != at::kFloat || !parameter.is_cpu() || parameter.dim() < 3 ||
        parameter.dim() > 5 || parameter.numel() == 0) {
      continue;
    }
    if (!tried.insert(parameter.sizes().vec()).second) continue;
    const bool wrong = is_wrong(parameter.sizes(), 1) ||
                       (parameter.size(1) == 1 && is_wrong(parameter.sizes(), parameter.size(0)));
    if (!wrong) continue;
    return fmt::format(
        "this LibTorch computes a wrong gradient for the input of a convolution (or a wrong "
        "output of a transposed one) with a kernel of [{}] in float32: it reads uninitialised "
        "memory. Training is affected too. As a remedy, call "
        "at::globalContext().setUserEnabledMkldnn(false) before training, or use float64",
        fmt::join(parameter.sizes().vec(), ", "));
  }
  return {};
}

}  // namespace tycho
