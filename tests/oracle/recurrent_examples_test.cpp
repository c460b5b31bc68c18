// Single examples' gradients of recurrent layers against one backward pass per example.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "plugin/src/observer.h"
#include "single_examples.h"

namespace tycho {
namespace {

using torch::Tensor;
namespace nn = torch::nn;

struct Layer {
  std::string name;
  std::shared_ptr<nn::Module> module;
  // Padded or packed; the states in front of the first time, which may hold examples.
  std::function<std::pair<Tensor, Tensor>(const Tensor& x, const Tensor& h)> padded;
  std::function<std::pair<Tensor, Tensor>(const nn::utils::rnn::PackedSequence&)> packed;
};

constexpr int64_t kIn = 3, kHidden = 4;

template <typename Impl, typename Options>
Layer make(const std::string& name, const Options& options) {
  auto impl = std::make_shared<Impl>(options);
  impl->to(torch::kDouble);
  Layer layer{name, impl, {}, {}};
  if constexpr (std::is_same_v<Impl, nn::LSTMImpl>) {
    const int64_t projected = options.proj_size() > 0 ? options.proj_size() : kHidden;
    layer.padded = [impl, projected](const Tensor& x, const Tensor& h) {
      auto [y, states] = h.defined()
                             ? impl->forward(x, std::make_tuple(h.narrow(2, 0, projected), h.sin()))
                             : impl->forward(x);
      return std::make_pair(y, torch::cat({std::get<0>(states), std::get<1>(states)}, 2));
    };
    layer.packed = [impl](const nn::utils::rnn::PackedSequence& x) {
      auto [y, states] = impl->forward_with_packed_input(x);
      return std::make_pair(std::get<0>(nn::utils::rnn::pad_packed_sequence(y)),
                            torch::cat({std::get<0>(states), std::get<1>(states)}, 2));
    };
  } else {
    layer.padded = [impl](const Tensor& x, const Tensor& h) {
      auto [y, state] = h.defined() ? impl->forward(x, h) : impl->forward(x);
      return std::make_pair(y, state);
    };
    layer.packed = [impl](const nn::utils::rnn::PackedSequence& x) {
      auto [y, state] = impl->forward_with_packed_input(x);
      return std::make_pair(std::get<0>(nn::utils::rnn::pad_packed_sequence(y)), state);
    };
  }
  return layer;
}

std::vector<Layer> layers(bool batch_first) {
  const auto lstm = [&] { return nn::LSTMOptions(kIn, kHidden).batch_first(batch_first); };
  const auto gru = [&] { return nn::GRUOptions(kIn, kHidden).batch_first(batch_first); };
  const auto rnn = [&] { return nn::RNNOptions(kIn, kHidden).batch_first(batch_first); };
  return {
      make<nn::LSTMImpl>("lstm", lstm()),
      make<nn::LSTMImpl>("deep lstm", lstm().num_layers(2).bidirectional(true)),
      make<nn::LSTMImpl>("projected lstm", lstm().proj_size(2).bidirectional(true).num_layers(2)),
      make<nn::LSTMImpl>("lstm without biases", lstm().bias(false)),
      make<nn::LSTMImpl>("projected lstm without biases", lstm().proj_size(2).bias(false)),
      make<nn::GRUImpl>("gru", gru()),
      make<nn::GRUImpl>("deep gru", gru().num_layers(3).bidirectional(true)),
      make<nn::RNNImpl>("rnn", rnn()),
      make<nn::RNNImpl>("deep relu rnn",
                        rnn().nonlinearity(torch::kReLU).num_layers(2).bidirectional(true)),
  };
}

// Each parameter is exact in three steps of seven examples.
void expect_exact(const std::string& name, nn::Module& module,
                  const std::function<Tensor(int step)>& losses, int64_t batch, int64_t batch_dim,
                  double tolerance = 1e-9) {
  const ModelInfo info = describe(module);
  const std::vector<Tensor> parameters = parameters_of(info);
  ObserverOptions options;
  options.batch_dim = batch_dim;
  Observer observer(info, options);
  Needs needs;
  needs.gradients = needs.per_example_gradient_norms = true;
  for (int step = 0; step < 3; ++step) {
    const Tensor each = losses(step) / static_cast<double>(batch);
    const auto expected = gradients_by_example(each, parameters, batch);
    module.zero_grad();
    observer.install(needs, 1, step == 0 ? 0 : batch);
    losses(step).mean().backward();
    const StepObservation got = observer.uninstall(batch);
    for (const auto& parameter : info.parameters) {
      SCOPED_TRACE(name + ": " + parameter.name);
      const ParameterObservation& seen = got.parameters[parameter.id];
      ASSERT_EQ(seen.per_example_norm_sq.size(), 1u) << seen.why_not_per_example;
      for (int64_t i = 0; i < batch; ++i) {
        const Tensor& gradient = expected[static_cast<size_t>(i)][parameter.id];
        const double norm_sq = gradient.defined() ? gradient.square().sum().item<double>() : 0;
        EXPECT_NEAR(seen.per_example_norm_sq[0][i].item<double>(), norm_sq,
                    tolerance * (norm_sq + 1e-3))
            << "example " << i;
      }
    }
  }
}

Tensor row_losses(const Tensor& y, int64_t dim) {
  const Tensor by = y.transpose(0, dim);
  return by.reshape({by.size(0), -1}).sin().cumsum(1).square().sum(1);
}

class RecurrentExamples : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(4); }
  static Tensor normal(at::IntArrayRef sizes) { return torch::randn(sizes, torch::kDouble); }
};

TEST_F(RecurrentExamples, OutputsOfAllTimes) {
  for (const bool batch_first : {true, false}) {
    const int64_t dim = batch_first ? 0 : 1;
    for (const Layer& layer : layers(batch_first)) {
      const Tensor x = batch_first ? normal({7, 5, kIn}) : normal({5, 7, kIn});
      expect_exact(
          layer.name, *layer.module,
          [&](int step) { return row_losses(layer.padded(x + step, {}).first, dim); }, 7, dim);
    }
  }
}

TEST_F(RecurrentExamples, StatesInTheEndAndInTheBeginning) {
  for (const Layer& layer : layers(true)) {
    const Tensor x = normal({4, 4, kIn});  // as many times as examples
    const int64_t states = layer.padded(x, {}).second.size(0);
    const Tensor h = normal({states, 4, kHidden});
    expect_exact(
        layer.name, *layer.module,
        [&](int) {
          const auto [y, end] = layer.padded(x, h);
          return row_losses(end, 1) + row_losses(y.select(1, 1), 0);
        },
        4, 0);
    expect_exact(
        layer.name, *layer.module, [&](int) { return row_losses(layer.padded(x, {}).second, 1); },
        4, 0);
  }
}

TEST_F(RecurrentExamples, PackedSequences) {
  for (const Layer& layer : layers(false)) {
    const Tensor x = normal({5, 4, kIn});
    const Tensor lengths = torch::tensor({2, 5, 1, 5}, torch::kLong);
    expect_exact(
        layer.name, *layer.module,
        [&](int) {
          const auto packed = nn::utils::rnn::pack_padded_sequence(x, lengths, false, false);
          const auto [y, end] = layer.packed(packed);
          return row_losses(y, 1) + row_losses(end, 1);
        },
        4, 1);
  }
}

TEST_F(RecurrentExamples, CellsAndLayersThatAreUsedAgain) {
  struct Cells : nn::Module {
    nn::LSTMCell lstm{kIn, kHidden};
    nn::GRUCell gru{nn::GRUCellOptions(kHidden, kHidden).bias(false)};
    nn::RNNCell rnn{kHidden, kHidden};
    nn::GRU layer{nn::GRUOptions(kHidden, kHidden)};
    Cells() {
      register_module("lstm", lstm);
      register_module("gru", gru);
      register_module("rnn", rnn);
      register_module("layer", layer);
      to(torch::kDouble);
    }
  } net;
  const Tensor x = normal({6, 5, kIn});
  expect_exact(
      "cells", net,
      [&](int) {
        Tensor h = torch::zeros({6, kHidden}, torch::kDouble), c = h, g = h, r = h;
        for (int64_t t = 0; t < 5; ++t) {
          std::tie(h, c) = net.lstm(x.select(1, t), std::make_tuple(h, c));
          g = net.gru(h, g);
          r = net.rnn(g, r);
        }
        const Tensor once = std::get<0>(net.layer(torch::stack({h, g, r})));
        const Tensor twice = std::get<0>(net.layer(once.flip(0)));
        return row_losses(twice, 1) + row_losses(c, 0);
      },
      6, 0);
}

// A decoder whose input is given, and whose state is what the encoder read.
TEST_F(RecurrentExamples, EncoderAndDecoder) {
  struct Both : nn::Module {
    nn::GRU encoder{nn::GRUOptions(kIn, kHidden).batch_first(true)};
    nn::GRU decoder{nn::GRUOptions(2, kHidden).batch_first(true)};
    nn::Linear head{kHidden, 2};
    Both() {
      register_module("encoder", encoder);
      register_module("decoder", decoder);
      register_module("head", head);
      to(torch::kDouble);
    }
  } net;
  const Tensor x = normal({5, 4, kIn}), y = normal({5, 3, 2});
  expect_exact(
      "both", net,
      [&](int) {
        const Tensor state = std::get<1>(net.encoder(x));
        return row_losses(net.head(std::get<0>(net.decoder(y, state))), 0);
      },
      5, 0);
}

TEST_F(RecurrentExamples, FrozenWeightsTakeNothingFromTheOthers) {
  nn::LSTM lstm(nn::LSTMOptions(kIn, kHidden).batch_first(true));
  lstm->to(torch::kDouble);
  lstm->all_weights()[1].requires_grad_(false);
  struct Rest : nn::Module {
  } rest;
  for (auto& item : lstm->named_parameters()) {
    if (item.value().requires_grad()) rest.register_parameter(item.key(), item.value());
  }
  const Tensor x = normal({5, 4, kIn});
  expect_exact(
      "frozen", rest, [&](int) { return row_losses(std::get<0>(lstm(x)), 0); }, 5, 0);
}

}  // namespace
}  // namespace tycho
