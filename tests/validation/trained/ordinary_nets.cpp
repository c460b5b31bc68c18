#include "ordinary_nets.h"

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>

#include "examples/data/image_set.h"
#include "examples/data/tensors.h"
#include "examples/data/text_tensor.h"

namespace tycho::validation {
namespace {

namespace nn = torch::nn;
using examples::own_text;
using torch::Tensor;

constexpr int64_t kPixels = 28 * 28;
constexpr int64_t kContext = 32;  // symbols of a text window

/// Draws the choices of a run; not LibTorch's generator, which the run uses.
class Choices {
 public:
  explicit Choices(uint64_t seed) : random_(seed) {}
  template <typename Value>
  Value one_of(std::initializer_list<Value> values) {
    std::uniform_int_distribution<size_t> position(0, values.size() - 1);
    return *(values.begin() + position(random_));
  }
  double between(double low, double high) {  // evenly in the logarithm
    std::uniform_real_distribution<double> exponent(std::log(low), std::log(high));
    return std::exp(exponent(random_));
  }

 private:
  std::mt19937_64 random_;
};

struct Images {
  Tensor inputs, labels;
};

const Images& digits() {
  static const Images images = [] {
    const auto set = examples::render_digits(8000, 29);
    return Images{examples::image_tensor(set), examples::label_tensor(set)};
  }();
  return images;
}

struct Batch {
  Tensor inputs, labels;
};

Batch draw_digits(int64_t size) {
  const Tensor chosen = torch::randint(digits().labels.size(0), {size}, torch::kInt64);
  return {digits().inputs.index_select(0, chosen), digits().labels.index_select(0, chosen)};
}

/// Windows of the text, [size, kContext], and the symbols that come next.
Batch draw_text(int64_t size) {
  const Tensor& all = own_text().all;
  const Tensor start = torch::randint(all.size(0) - kContext - 1, {size, 1}, torch::kInt64);
  const Tensor window = all.index({start + torch::arange(kContext + 1)});
  return {window.narrow(1, 0, kContext), window.narrow(1, 1, kContext)};
}

Tensor cross_entropy(const Tensor& logits, const Tensor& labels) {
  return torch::cross_entropy_loss(logits.reshape({-1, logits.size(-1)}), labels.reshape(-1));
}

/// How a run is trained.
struct Recipe {
  int64_t steps = 1000;
  int64_t batch = 64;
  double rate = 0.05;
  double warm_up = 0;   // share of the steps
  bool cosine = false;  // else constant
  double clip = 0;      // largest norm of the gradient; 0: none
};

double rate_at(const Recipe& recipe, int64_t step) {
  const double at = (static_cast<double>(step) + 1) / static_cast<double>(recipe.steps);
  if (at < recipe.warm_up) return recipe.rate * at / recipe.warm_up;
  return recipe.cosine ? recipe.rate * std::max(0.5 * (1 + std::cos(M_PI * at)), 0.01)
                       : recipe.rate;
}

void set_rate(torch::optim::Optimizer& optimizer, double rate) {
  for (auto& group : optimizer.param_groups()) group.options().set_lr(rate);
}

std::vector<std::string> train(nn::Module& model, torch::optim::Optimizer& optimizer,
                               const Recipe& recipe, Preset preset, double length,
                               const std::string& directory, const std::function<Batch()>& draw,
                               const std::function<Tensor(const Batch&)>& loss_of) {
  Recipe scaled = recipe;
  scaled.steps = std::max<int64_t>(std::llround(length * static_cast<double>(recipe.steps)), 1);
  Session session(model, optimizer, SessionOptions(directory).preset(preset));
  for (int64_t step = 0; step < scaled.steps; ++step) {
    set_rate(optimizer, rate_at(scaled, step));
    const Batch batch = draw();
    optimizer.zero_grad();
    const Tensor loss = loss_of(batch);
    loss.backward();
    if (recipe.clip > 0) nn::utils::clip_grad_norm_(model.parameters(), recipe.clip);
    optimizer.step();
    session.step(loss, batch.inputs.size(0));
  }
  session.close();
  return {session.directory()};
}

std::vector<std::string> train_mlp(uint64_t seed, Preset preset, double length,
                                   const std::string& directory) {
  Choices choices(seed);
  const auto width = choices.one_of<int64_t>({64, 128, 256});
  const auto depth = choices.one_of<int64_t>({2, 3, 4});
  const auto activation = choices.one_of({0, 1, 2});
  nn::Sequential model;
  for (int64_t layer = 0; layer < depth; ++layer) {
    model->push_back(nn::Linear(layer == 0 ? kPixels : width, width));
    if (activation == 0) model->push_back(nn::ReLU());
    if (activation == 1) model->push_back(nn::Tanh());
    if (activation == 2) model->push_back(nn::GELU());
  }
  model->push_back(nn::Linear(width, 10));
  Recipe recipe;
  recipe.batch = choices.one_of<int64_t>({32, 64, 128});
  const double momentum = choices.one_of({0.0, 0.9});
  recipe.rate = momentum > 0 ? choices.between(0.01, 0.05) : choices.between(0.05, 0.3);
  recipe.cosine = choices.one_of({false, true});
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(recipe.rate)
                                                       .momentum(momentum)
                                                       .weight_decay(choices.one_of({0.0, 1e-4})));
  return train(
      *model, optimizer, recipe, preset, length, directory,
      [&] { return draw_digits(recipe.batch); },
      [&](const Batch& batch) {
        return cross_entropy(model->forward(batch.inputs.flatten(1)), batch.labels);
      });
}

std::vector<std::string> train_cnn(uint64_t seed, Preset preset, double length,
                                   const std::string& directory) {
  Choices choices(seed);
  const auto channels = choices.one_of<int64_t>({8, 12});
  nn::Sequential model(
      nn::Conv2d(nn::Conv2dOptions(1, channels, 3).padding(1).bias(false)),
      nn::BatchNorm2d(channels), nn::ReLU(), nn::MaxPool2d(2),
      nn::Conv2d(nn::Conv2dOptions(channels, 2 * channels, 3).padding(1).bias(false)),
      nn::BatchNorm2d(2 * channels), nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(),
      nn::Dropout(choices.one_of({0.0, 0.25})), nn::Linear(2 * channels * 7 * 7, 10));
  Recipe recipe;
  recipe.steps = 500;
  recipe.batch = choices.one_of<int64_t>({32, 64});
  recipe.cosine = choices.one_of({false, true});
  const bool adam = choices.one_of({false, true});
  recipe.rate = adam ? choices.between(5e-4, 2e-3) : choices.between(0.01, 0.1);
  const double decay = choices.one_of({0.0, 1e-3});
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  if (adam) {
    optimizer = std::make_unique<torch::optim::AdamW>(
        model->parameters(), torch::optim::AdamWOptions(recipe.rate).weight_decay(decay));
  } else {
    optimizer = std::make_unique<torch::optim::SGD>(
        model->parameters(),
        torch::optim::SGDOptions(recipe.rate).momentum(0.9).weight_decay(decay));
  }
  return train(
      *model, *optimizer, recipe, preset, length, directory,
      [&] { return draw_digits(recipe.batch); },
      [&](const Batch& batch) {
        return cross_entropy(model->forward(batch.inputs), batch.labels);
      });
}

/// LibTorch's own encoder, whose layout is [T, B, width], as a language model.
class LanguageModelImpl : public nn::Module {
 public:
  LanguageModelImpl(int64_t width, int64_t layers, double dropout) {
    symbol_ = register_module("symbol", nn::Embedding(own_text().alphabet, width));
    position_ = register_module("position", nn::Embedding(kContext, width));
    const auto layer =
        nn::TransformerEncoderLayerOptions(width, 4).dim_feedforward(4 * width).dropout(dropout);
    encoder_ = register_module("encoder",
                               nn::TransformerEncoder(nn::TransformerEncoderLayer(layer), layers));
    head_ = register_module("head", nn::Linear(width, own_text().alphabet));
    mask_ = register_buffer("mask", torch::full({kContext, kContext}, -INFINITY).triu(1));
  }
  Tensor forward(const Tensor& x) {
    const Tensor embedded =
        symbol_->forward(x) + position_->forward(torch::arange(kContext).expand_as(x));
    return head_->forward(encoder_->forward(embedded.transpose(0, 1), mask_).transpose(0, 1));
  }

 private:
  nn::Embedding symbol_{nullptr}, position_{nullptr};
  nn::TransformerEncoder encoder_{nullptr};
  nn::Linear head_{nullptr};
  Tensor mask_;
};
TORCH_MODULE(LanguageModel);

std::vector<std::string> train_transformer(uint64_t seed, Preset preset, double length,
                                           const std::string& directory) {
  Choices choices(seed);
  LanguageModel model(choices.one_of<int64_t>({32, 48}), choices.one_of<int64_t>({1, 2}),
                      choices.one_of({0.0, 0.1}));
  Recipe recipe;
  recipe.steps = 600;
  recipe.batch = choices.one_of<int64_t>({8, 16});
  recipe.rate = choices.between(5e-4, 2e-3);
  recipe.warm_up = 0.1;
  recipe.cosine = choices.one_of({false, true});
  recipe.clip = choices.one_of({0.0, 1.0});
  torch::optim::AdamW optimizer(
      model->parameters(),
      torch::optim::AdamWOptions(recipe.rate).weight_decay(choices.one_of({0.01, 0.1})));
  return train(
      *model, optimizer, recipe, preset, length, directory, [&] { return draw_text(recipe.batch); },
      [&](const Batch& batch) {
        return cross_entropy(model->forward(batch.inputs), batch.labels);
      });
}

class RecurrentModelImpl : public nn::Module {
 public:
  explicit RecurrentModelImpl(int64_t width) {
    symbol_ = register_module("symbol", nn::Embedding(own_text().alphabet, width));
    recurrent_ =
        register_module("recurrent", nn::LSTM(nn::LSTMOptions(width, width).batch_first(true)));
    head_ = register_module("head", nn::Linear(width, own_text().alphabet));
  }
  Tensor forward(const Tensor& x) {
    return head_->forward(std::get<0>(recurrent_->forward(symbol_->forward(x))));
  }

 private:
  nn::Embedding symbol_{nullptr};
  nn::LSTM recurrent_{nullptr};
  nn::Linear head_{nullptr};
};
TORCH_MODULE(RecurrentModel);

std::vector<std::string> train_lstm(uint64_t seed, Preset preset, double length,
                                    const std::string& directory) {
  Choices choices(seed);
  RecurrentModel model(choices.one_of<int64_t>({32, 64}));
  Recipe recipe;
  recipe.steps = 500;
  recipe.batch = choices.one_of<int64_t>({8, 16});
  recipe.rate = choices.between(1e-3, 5e-3);
  recipe.clip = choices.one_of({0.0, 1.0});
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(recipe.rate));
  return train(
      *model, optimizer, recipe, preset, length, directory, [&] { return draw_text(recipe.batch); },
      [&](const Batch& batch) {
        return cross_entropy(model->forward(batch.inputs), batch.labels);
      });
}

std::vector<std::string> train_gan(uint64_t seed, Preset preset, double length,
                                   const std::string& directory) {
  Choices choices(seed);
  const auto width = choices.one_of<int64_t>({64, 128});
  const auto latent = choices.one_of<int64_t>({16, 32});
  const auto batch_size = choices.one_of<int64_t>({32, 64});
  const auto leak = nn::LeakyReLUOptions().negative_slope(0.2);
  nn::Sequential generator(nn::Linear(latent, width), nn::ReLU(), nn::Linear(width, width),
                           nn::ReLU(), nn::Linear(width, kPixels), nn::Tanh());
  nn::Sequential discriminator(nn::Linear(kPixels, width), nn::LeakyReLU(leak),
                               nn::Linear(width, width), nn::LeakyReLU(leak), nn::Linear(width, 1));
  const auto options =
      torch::optim::AdamOptions(choices.between(1e-4, 4e-4)).betas(std::make_tuple(0.5, 0.999));
  torch::optim::Adam of_generator(generator->parameters(), options);
  torch::optim::Adam of_discriminator(discriminator->parameters(), options);
  Session generating(*generator, of_generator,
                     SessionOptions(directory + "/generator").preset(preset));
  Session judging(*discriminator, of_discriminator,
                  SessionOptions(directory + "/discriminator").preset(preset));
  const auto ones = torch::ones({batch_size, 1});
  const auto zeros = torch::zeros({batch_size, 1});
  const int64_t steps = std::max<int64_t>(std::llround(length * 800), 1);
  for (int64_t step = 0; step < steps; ++step) {
    const Tensor real = draw_digits(batch_size).inputs.flatten(1) * 2 - 1;
    const Tensor made = generator->forward(torch::randn({batch_size, latent}));
    of_discriminator.zero_grad();
    const Tensor loss =
        torch::binary_cross_entropy_with_logits(discriminator->forward(real), ones) +
        torch::binary_cross_entropy_with_logits(discriminator->forward(made.detach()), zeros);
    loss.backward();
    of_discriminator.step();
    judging.step(loss, batch_size);
    of_generator.zero_grad();
    const Tensor fooled =
        torch::binary_cross_entropy_with_logits(discriminator->forward(made), ones);
    fooled.backward();
    of_generator.step();
    generating.step(fooled, batch_size);
  }
  generating.close();
  judging.close();
  return {generating.directory(), judging.directory()};
}

/// Whatever a seed's run draws is drawn from the seed.
OrdinaryNet seeded(OrdinaryNet net) {
  net.train = [train = std::move(net.train)](uint64_t seed, Preset preset, double length,
                                             const std::string& directory) {
    torch::manual_seed(seed);
    return train(seed, preset, length, directory);
  };
  return net;
}

}  // namespace

const std::vector<OrdinaryNet>& ordinary_nets() {
  static const std::vector<OrdinaryNet> nets = {
      seeded(
          {"MLP",
           "2 to 4 hidden layers of 64 to 256, ReLU, tanh or GELU; SGD with and without momentum; "
           "1000 steps on digits",
           train_mlp}),
      seeded({"CNN",
              "2 convolutions with batch normalisation, dropout; SGD with momentum or AdamW; 500 "
              "steps on digits",
              train_cnn}),
      seeded({"transformer",
              "1 or 2 post-norm encoder layers, dropout; AdamW with warm-up, with and without "
              "clipping; 600 steps on text",
              train_transformer}),
      seeded({"LSTM", "width 32 or 64; Adam, with and without clipping; 500 steps on text",
              train_lstm}),
      seeded({"GAN",
              "generator and discriminator of 3 layers with a session each; Adam; 800 steps on "
              "digits",
              train_gan})};
  return nets;
}

}  // namespace tycho::validation
