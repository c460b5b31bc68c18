#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tycho {

/// A small network with a loss, in float64, of at most 2000 parameters.
struct CurvedNetwork {
  std::string name;
  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor()> output;                 ///< of the network on fixed data
  std::function<at::Tensor(const at::Tensor&)> loss;  ///< of the output
  bool smooth = true;                                 ///< no kinks: differences of gradients agree
  std::vector<at::Tensor> parameters() const { return module->parameters(); }
  at::Tensor value() const { return loss(output()); }
};

inline std::vector<CurvedNetwork> curved_networks() {
  namespace nn = torch::nn;
  namespace F = torch::nn::functional;
  torch::manual_seed(5);
  const auto mean_square = [](at::Tensor y) {
    return [y](const at::Tensor& z) { return F::mse_loss(z, y); };
  };
  const auto cross_entropy = [](at::Tensor y) {
    return [y](const at::Tensor& z) { return F::cross_entropy(z, y); };
  };
  std::vector<CurvedNetwork> all;
  {
    nn::Sequential model(nn::Linear(5, 8), nn::Tanh(), nn::Linear(8, 6), nn::Tanh(),
                         nn::Linear(6, 3));
    model->to(torch::kFloat64);
    const auto x = torch::randn({12, 5}, torch::kFloat64);
    all.push_back({"tanh", model.ptr(), [=]() mutable { return model->forward(x); },
                   mean_square(torch::randn({12, 3}, torch::kFloat64)), true});
  }
  {
    nn::Sequential model(nn::Linear(5, 10), nn::LayerNorm(nn::LayerNormOptions({10})), nn::ReLU(),
                         nn::Linear(10, 4));
    model->to(torch::kFloat64);
    const auto x = torch::randn({12, 5}, torch::kFloat64);
    all.push_back({"relu_layer_norm", model.ptr(), [=]() mutable { return model->forward(x); },
                   cross_entropy(torch::randint(4, {12})), false});
  }
  {
    nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(1, 4, 3)), nn::BatchNorm2d(4), nn::Tanh(),
                         nn::Conv2d(nn::Conv2dOptions(4, 3, 2).groups(1)), nn::Flatten(),
                         nn::Linear(27, 3));
    model->to(torch::kFloat64);
    const auto x = torch::randn({6, 1, 6, 6}, torch::kFloat64);
    all.push_back({"convolution_batch_norm", model.ptr(),
                   [=]() mutable { return model->forward(x); },
                   cross_entropy(torch::randint(3, {6})), true});
  }
  {
    struct AttentionImpl : nn::Module {
      nn::Embedding token{7, 6};
      nn::Linear query_key_value{6, 18}, output{6, 6};
      nn::LayerNorm norm{nn::LayerNormOptions({6})};
      AttentionImpl() {
        register_module("token", token);
        register_module("query_key_value", query_key_value);
        register_module("output", output);
        register_module("norm", norm);
      }
      at::Tensor forward(const at::Tensor& tokens) {
        const auto x = token(tokens);
        const auto parts =
            query_key_value(norm(x)).view({x.size(0), x.size(1), 3, 2, 3}).permute({2, 0, 3, 1, 4});
        const auto weights = torch::matmul(parts[0], parts[1].transpose(-2, -1)).softmax(-1);
        const auto mixed = torch::matmul(weights, parts[2]).transpose(1, 2).flatten(2);
        // The embedding is used twice: once more as the head.
        return torch::matmul(x + output(mixed), token->weight.t());
      }
    };
    auto model = std::make_shared<AttentionImpl>();
    model->to(torch::kFloat64);
    const auto tokens = torch::randint(7, {3, 5});
    all.push_back({"attention_tied", model, [=] { return model->forward(tokens).flatten(0, 1); },
                   cross_entropy(torch::randint(7, {15})), true});
  }
  {
    nn::Sequential model(nn::Linear(4, 6), nn::Dropout(0.4), nn::Sigmoid(), nn::Linear(6, 2));
    model->to(torch::kFloat64);
    const auto x = torch::randn({9, 4}, torch::kFloat64);
    all.push_back({"dropout", model.ptr(), [=]() mutable { return model->forward(x); },
                   mean_square(torch::randn({9, 2}, torch::kFloat64)), true});
  }
  return all;
}

/// The Hessian entry by entry: one backward pass through the gradient for each row.
inline at::Tensor dense_hessian(const std::function<at::Tensor()>& value,
                                const std::vector<at::Tensor>& parameters) {
  const auto flatten = [&](const std::vector<at::Tensor>& parts) {
    std::vector<at::Tensor> flat;
    for (size_t i = 0; i < parts.size(); ++i) {
      flat.push_back(
          (parts[i].defined() ? parts[i] : torch::zeros_like(parameters[i])).reshape(-1));
    }
    return torch::cat(flat);
  };
  const auto gradient = flatten(torch::autograd::grad({value()}, parameters, {}, true, true, true));
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < gradient.size(0); ++i) {
    rows.push_back(
        flatten(torch::autograd::grad({gradient[i]}, parameters, {}, true, false, true)).detach());
  }
  const auto hessian = torch::stack(rows);
  return (hessian + hessian.t()) / 2;
}

/// J' L'' J with the Jacobian row by row.
inline at::Tensor dense_gauss_newton(const CurvedNetwork& network) {
  const auto parameters = network.parameters();
  const auto output = network.output();
  const auto flat = output.reshape(-1);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < flat.size(0); ++i) {
    std::vector<at::Tensor> parts;
    const auto found = torch::autograd::grad({flat[i]}, parameters, {}, true, false, true);
    for (size_t k = 0; k < found.size(); ++k) {
      parts.push_back(
          (found[k].defined() ? found[k] : torch::zeros_like(parameters[k])).reshape(-1));
    }
    rows.push_back(torch::cat(parts));
  }
  const auto jacobian = torch::stack(rows);
  const auto leaf = output.detach().requires_grad_(true);
  const auto outer = dense_hessian([&] { return network.loss(leaf); }, {leaf});
  return torch::matmul(jacobian.t(), torch::matmul(outer, jacobian)).detach();
}

}  // namespace tycho
