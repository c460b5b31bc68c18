#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>

namespace tycho::bench {

namespace nn = torch::nn;
using torch::Tensor;

struct Trainer {
  std::shared_ptr<nn::Module> module;
  std::function<Tensor(int64_t step)> loss;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  int64_t batch_size = 0;
};

inline Trainer mlp() {
  nn::Sequential model(nn::Linear(784, 512), nn::ReLU(), nn::Linear(512, 512), nn::ReLU(),
                       nn::Linear(512, 10));
  Trainer trainer;
  trainer.batch_size = 128;
  const Tensor x = torch::randn({8, 128, 784});
  const Tensor y = torch::randint(10, {8, 128});
  trainer.module = model.ptr();
  trainer.loss = [=](int64_t step) mutable {
    return nn::functional::cross_entropy(model->forward(x[step % 8]), y[step % 8]);
  };
  trainer.optimizer = std::make_unique<torch::optim::SGD>(
      model->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  return trainer;
}

inline Trainer cnn() {
  nn::Sequential model(nn::Conv2d(nn::Conv2dOptions(1, 16, 3).padding(1)), nn::BatchNorm2d(16),
                       nn::ReLU(), nn::MaxPool2d(2),
                       nn::Conv2d(nn::Conv2dOptions(16, 32, 3).padding(1)), nn::BatchNorm2d(32),
                       nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(32 * 49, 10));
  Trainer trainer;
  trainer.batch_size = 64;
  const Tensor x = torch::randn({8, 64, 1, 28, 28});
  const Tensor y = torch::randint(10, {8, 64});
  trainer.module = model.ptr();
  trainer.loss = [=](int64_t step) mutable {
    return nn::functional::cross_entropy(model->forward(x[step % 8]), y[step % 8]);
  };
  trainer.optimizer = std::make_unique<torch::optim::Adam>(model->parameters(), 1e-3);
  return trainer;
}

struct BlockImpl : nn::Module {
  nn::LayerNorm first{nullptr}, second{nullptr};
  nn::Linear query_key_value{nullptr}, output{nullptr}, up{nullptr}, down{nullptr};
  static constexpr int64_t kWidth = 128;
  static constexpr int64_t kHeads = 4;
  BlockImpl() {
    first = register_module("first", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    second = register_module("second", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    query_key_value = register_module("query_key_value", nn::Linear(kWidth, 3 * kWidth));
    output = register_module("output", nn::Linear(kWidth, kWidth));
    up = register_module("up", nn::Linear(kWidth, 4 * kWidth));
    down = register_module("down", nn::Linear(4 * kWidth, kWidth));
  }
  Tensor forward(Tensor x) {
    const int64_t batch = x.size(0);
    const int64_t time = x.size(1);
    const auto parts = query_key_value(first(x))
                           .view({batch, time, 3, kHeads, kWidth / kHeads})
                           .permute({2, 0, 3, 1, 4});
    const Tensor scores = torch::matmul(parts[0], parts[1].transpose(-2, -1)) / 5.6568542494923806;
    x = x + output(torch::matmul(scores.softmax(-1), parts[2]).transpose(1, 2).flatten(2));
    return x + down(torch::gelu(up(second(x))));
  }
};
TORCH_MODULE(Block);

struct TransformerImpl : nn::Module {
  nn::Embedding token{nullptr}, position{nullptr};
  nn::Sequential blocks;
  nn::Linear head{nullptr};
  TransformerImpl() {
    token = register_module("token", nn::Embedding(96, BlockImpl::kWidth));
    position = register_module("position", nn::Embedding(64, BlockImpl::kWidth));
    for (int i = 0; i < 2; ++i) blocks->push_back(Block());
    register_module("blocks", blocks);
    head = register_module("head", nn::Linear(BlockImpl::kWidth, 96));
  }
  Tensor forward(const Tensor& tokens) {
    return head(blocks->forward(token(tokens) + position(torch::arange(tokens.size(1)))));
  }
};
TORCH_MODULE(Transformer);

inline Trainer transformer() {
  Transformer model;
  Trainer trainer;
  trainer.batch_size = 16;
  const Tensor tokens = torch::randint(96, {8, 16, 65});
  trainer.module = model.ptr();
  trainer.loss = [=](int64_t step) mutable {
    const Tensor batch = tokens[step % 8];
    return nn::functional::cross_entropy(model->forward(batch.narrow(1, 0, 64)).flatten(0, 1),
                                         batch.narrow(1, 1, 64).flatten());
  };
  trainer.optimizer =
      std::make_unique<torch::optim::AdamW>(model->parameters(), torch::optim::AdamWOptions(3e-4));
  return trainer;
}

}  // namespace tycho::bench
