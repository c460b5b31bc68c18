#include "lab.h"

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "examples/data/tensors.h"
#include "examples/data/text_tensor.h"

namespace tycho::decisions {
namespace {

namespace nn = torch::nn;
using examples::own_text;
using torch::Tensor;

struct Data {
  Tensor inputs, labels, held_out_inputs, held_out_labels;
};

const Data& digits() {
  static const Data data = [] {
    constexpr int64_t kTrain = 8000;
    const auto set = examples::render_digits(kTrain + 2000, 11);
    const Tensor images = examples::image_tensor(set);
    const Tensor labels = examples::label_tensor(set);
    return Data{images.narrow(0, 0, kTrain), labels.narrow(0, 0, kTrain),
                images.narrow(0, kTrain, 2000), labels.narrow(0, kTrain, 2000)};
  }();
  return data;
}

constexpr int64_t kContext = 32;
constexpr int64_t kWidth = 48;
constexpr int64_t kHeads = 4;

/// A network as a list of stages; a stage with weights can be detached from those before it.
class NetImpl : public nn::Module {
 public:
  explicit NetImpl(int64_t detached) : detached_(detached) {}

  template <typename Layer>
  void add(Layer layer) {
    stages_->push_back(layer);
  }
  void finish() { register_module("stages", stages_); }

  Tensor forward(Tensor x) {
    int64_t with_weights = -1;
    for (auto& stage : *stages_) {
      x = stage.forward(x);
      const bool has_weights = !stage.ptr()->parameters().empty();
      if (has_weights && ++with_weights == detached_) x = x.detach();
    }
    return x;
  }

  std::vector<std::shared_ptr<nn::Module>> layers() {
    std::vector<std::shared_ptr<nn::Module>> found;
    for (auto& stage : *stages_)
      if (!stage.ptr()->parameters().empty()) found.push_back(stage.ptr());
    return found;
  }

 private:
  nn::Sequential stages_;
  int64_t detached_;
};
TORCH_MODULE(Net);

class TokensImpl : public nn::Module {
 public:
  TokensImpl() {
    token_ = register_module("token", nn::Embedding(own_text().alphabet, kWidth));
    position_ = register_module("position", nn::Embedding(kContext, kWidth));
  }
  Tensor forward(const Tensor& x) {
    return token_->forward(x) + position_->forward(torch::arange(x.size(1)).expand_as(x));
  }

 private:
  nn::Embedding token_{nullptr};
  nn::Embedding position_{nullptr};
};
TORCH_MODULE(Tokens);

class BlockImpl : public nn::Module {
 public:
  BlockImpl() {
    norm_ = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    heads_ = register_module("heads", nn::Linear(kWidth, 3 * kWidth));
    output_ = register_module("output", nn::Linear(kWidth, kWidth));
    mlp_norm_ = register_module("mlp_norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    mlp_ = register_module("mlp", nn::Sequential(nn::Linear(kWidth, 4 * kWidth), nn::GELU(),
                                                 nn::Linear(4 * kWidth, kWidth)));
    future_ = register_buffer("future", torch::ones({kContext, kContext}, torch::kBool).triu(1));
  }
  Tensor forward(const Tensor& x) {
    const auto heads = heads_->forward(norm_->forward(x))
                           .view({x.size(0), x.size(1), 3, kHeads, kWidth / kHeads})
                           .permute({2, 0, 3, 1, 4});
    const auto scores = torch::matmul(heads[0], heads[1].transpose(-2, -1)) /
                        std::sqrt(static_cast<double>(kWidth / kHeads));
    const auto attention =
        scores.masked_fill(future_, -std::numeric_limits<float>::infinity()).softmax(-1);
    const auto y =
        x + output_->forward(torch::matmul(attention, heads[2]).transpose(1, 2).flatten(2));
    return y + mlp_->forward(mlp_norm_->forward(y));
  }

 private:
  nn::LayerNorm norm_{nullptr}, mlp_norm_{nullptr};
  nn::Linear heads_{nullptr}, output_{nullptr};
  nn::Sequential mlp_{nullptr};
  Tensor future_;
};
TORCH_MODULE(Block);

Net make(const RunSetup& setup) {
  Net net(setup.detached);
  if (setup.net == "mlp") {
    net->add(nn::Flatten());
    net->add(nn::Linear(784, 64));
    net->add(nn::ReLU());
    net->add(nn::Linear(64, 64));
    net->add(nn::ReLU());
    net->add(nn::Linear(64, 64));
    net->add(nn::ReLU());
    net->add(nn::Linear(64, 10));
  } else if (setup.net == "cnn") {
    net->add(nn::Conv2d(nn::Conv2dOptions(1, 8, 3).padding(1)));
    net->add(nn::ReLU());
    net->add(nn::MaxPool2d(2));
    net->add(nn::Conv2d(nn::Conv2dOptions(8, 16, 3).padding(1).bias(false)));
    net->add(nn::BatchNorm2d(16));
    net->add(nn::ReLU());
    net->add(nn::MaxPool2d(2));
    net->add(nn::Flatten());
    net->add(nn::Linear(16 * 7 * 7, 32));
    net->add(nn::ReLU());
    net->add(nn::Linear(32, 10));
  } else if (setup.net == "transformer") {
    net->add(Tokens());
    net->add(Block());
    net->add(Block());
    net->add(nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    net->add(nn::Linear(kWidth, own_text().alphabet));
  } else {
    throw std::invalid_argument("no network \"" + setup.net + "\"");
  }
  net->finish();
  torch::NoGradGuard no_grad;
  for (auto& parameter : net->parameters())
    if (parameter.dim() > 1) parameter.mul_(setup.gain);
  if (setup.dead >= 0) {
    for (auto& named : net->layers().at(setup.dead)->named_parameters())
      if (named.key() == "bias") named.value().fill_(-50);
  }
  return net;
}

struct Batch {
  Tensor inputs, labels;
};

class Source {
 public:
  explicit Source(const RunSetup& setup) : setup_(setup) {
    if (setup.net == "transformer") return;
    labels_ = digits().labels.clone();
    const Tensor random = torch::rand({labels_.size(0)}).lt(setup.label_noise);
    labels_ = torch::where(random, torch::randint(10, {labels_.size(0)}), labels_);
  }

  Batch next(int64_t step) const {
    const int64_t distinct = std::max<int64_t>(setup_.batch / setup_.copies, 1);
    if (setup_.net == "transformer") {
      const Tensor& all = own_text().all;
      const auto start =
          torch::randint(all.size(0) * 9 / 10 - kContext, {distinct, 1}, torch::kInt64);
      const Tensor window =
          all.index({start + torch::arange(kContext + 1)}).repeat({setup_.copies, 1});
      Tensor labels = window.narrow(1, 1, kContext);
      const Tensor random = torch::rand(labels.sizes()).lt(setup_.label_noise);
      labels = torch::where(random, torch::randint(own_text().alphabet, labels.sizes()), labels);
      return {window.narrow(1, 0, kContext), labels};
    }
    Tensor chosen;
    if (setup_.sorted) {
      const int64_t label = (step / 20) % 10;
      const Tensor all = digits().labels.eq(label).nonzero().flatten();
      chosen = all.index_select(0, torch::randint(all.size(0), {distinct}, torch::kInt64));
    } else {
      chosen = torch::randint(labels_.size(0), {distinct}, torch::kInt64);
    }
    chosen = chosen.repeat({setup_.copies});
    return {scaled(digits().inputs.index_select(0, chosen)), labels_.index_select(0, chosen)};
  }

  Batch held_out() const {
    if (setup_.net != "transformer")
      return {scaled(digits().held_out_inputs), digits().held_out_labels};
    const Tensor& all = own_text().all;
    const int64_t from = all.size(0) * 9 / 10;
    const auto start = torch::linspace(static_cast<double>(from),
                                       static_cast<double>(all.size(0) - kContext - 2), 128)
                           .to(torch::kInt64)
                           .unsqueeze(1);
    const Tensor window = all.index({start + torch::arange(kContext + 1)});
    return {window.narrow(1, 0, kContext), window.narrow(1, 1, kContext)};
  }

 private:
  Tensor scaled(const Tensor& inputs) const { return setup_.scaled_inputs ? inputs * 100 : inputs; }
  RunSetup setup_;
  Tensor labels_;
};

double rate_at(const RunSetup& setup, int64_t step) {
  const double at = static_cast<double>(step) / static_cast<double>(setup.steps);
  if (at < setup.warm_up)
    return setup.learning_rate * (static_cast<double>(step) + 1) /
           (setup.warm_up * static_cast<double>(setup.steps));
  if (at > setup.decay_from)
    return setup.learning_rate * std::max(1e-3, 1 - (at - setup.decay_from) / 0.1);
  return setup.learning_rate;
}

Tensor loss_of(Net& net, const Batch& batch) {
  const Tensor logits = net->forward(batch.inputs);
  return torch::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}), batch.labels.reshape(-1));
}

std::vector<Tensor> trained(Net& net, const RunSetup& setup) {
  std::vector<Tensor> left_out;
  if (setup.frozen >= 0) left_out = net->layers().at(setup.frozen)->parameters();
  std::vector<Tensor> result;
  for (const Tensor& parameter : net->parameters()) {
    const bool out = std::any_of(left_out.begin(), left_out.end(),
                                 [&](const Tensor& each) { return each.is_same(parameter); });
    if (!out) result.push_back(parameter);
  }
  return result;
}

std::unique_ptr<torch::optim::Optimizer> optimizer_of(Net& net, const RunSetup& setup) {
  if (setup.adam)
    return std::make_unique<torch::optim::AdamW>(trained(net, setup),
                                                 torch::optim::AdamWOptions(setup.learning_rate)
                                                     .eps(setup.epsilon)
                                                     .weight_decay(setup.weight_decay));
  return std::make_unique<torch::optim::SGD>(trained(net, setup),
                                             torch::optim::SGDOptions(setup.learning_rate)
                                                 .momentum(setup.momentum)
                                                 .weight_decay(setup.weight_decay));
}

void set_rate(torch::optim::Optimizer& optimizer, bool adam, double rate) {
  auto& options = optimizer.param_groups()[0].options();
  if (adam) {
    static_cast<torch::optim::AdamWOptions&>(options).lr(rate);
  } else {
    static_cast<torch::optim::SGDOptions&>(options).lr(rate);
  }
}

}  // namespace

RunSetup baseline(const std::string& name) {
  RunSetup setup;
  if (name == "mlp") return setup;
  setup.adam = true;
  setup.learning_rate = 1e-3;
  setup.weight_decay = 0.01;
  if (name == "mlp_adam") return setup;
  setup.net = name;
  setup.steps = 500;
  if (name == "cnn") return setup;
  if (name != "transformer") throw std::invalid_argument("no baseline \"" + name + "\"");
  setup.batch = 16;
  setup.learning_rate = 2e-3;
  setup.warm_up = 0.1;
  setup.decay_from = 0.9;
  setup.steps = 800;
  return setup;
}

Outcome train(const RunSetup& setup, const std::string& directory) {
  torch::manual_seed(setup.seed);
  Net net = make(setup);
  const Source source(setup);
  const auto optimizer = optimizer_of(net, setup);
  {
    std::unique_ptr<Session> session;
    if (!directory.empty())
      session = std::make_unique<Session>(*net, *optimizer, SessionOptions(directory));
    for (int64_t step = 0; step < setup.steps; ++step) {
      set_rate(*optimizer, setup.adam, rate_at(setup, step));
      const Batch batch = source.next(step);
      if (!setup.keep_gradients) optimizer->zero_grad();
      const Tensor loss = loss_of(net, batch);
      loss.backward();
      if (setup.clip > 0) nn::utils::clip_grad_norm_(net->parameters(), setup.clip);
      optimizer->step();
      if (session) session->step(loss, batch.inputs.size(0));
    }
  }
  torch::NoGradGuard no_grad;
  net->eval();
  const Batch held_out = source.held_out();
  const Tensor logits = net->forward(held_out.inputs);
  Outcome outcome;
  outcome.held_out_loss = loss_of(net, held_out).item<double>();
  outcome.held_out_error =
      logits.argmax(-1).ne(held_out.labels).to(torch::kFloat64).mean().item<double>();
  return outcome;
}

}  // namespace tycho::decisions
