// A transformer that predicts the next character, trained by AdamW with warm-up, cosine decay and
// clipping. Question: is the learning rate well chosen, and in which regime do the layers of a
// language model train?

#include <torch/torch.h>
#include <tycho/tycho.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iostream>

#include "arguments.h"
#include "data/text.h"

namespace nn = torch::nn;

namespace {

constexpr int64_t kContext = 64;
constexpr int64_t kBatch = 16;
constexpr int64_t kWidth = 96;
constexpr int64_t kHeads = 4;
constexpr int64_t kBlocks = 2;

class AttentionImpl : public nn::Module {
 public:
  AttentionImpl() {
    query_key_value_ = register_module("query_key_value", nn::Linear(kWidth, 3 * kWidth));
    output_ = register_module("output", nn::Linear(kWidth, kWidth));
    hidden_future_ = register_buffer(
        "hidden_future", torch::ones({kContext, kContext}, torch::kBool).triu(/*diagonal=*/1));
  }

  /// [batch, context, width] to the same.
  torch::Tensor forward(const torch::Tensor& x) {
    const auto heads = query_key_value_->forward(x)
                           .view({x.size(0), x.size(1), 3, kHeads, kWidth / kHeads})
                           .permute({2, 0, 3, 1, 4});  // [3, batch, head, context, width of a head]
    const auto scores = torch::matmul(heads[0], heads[1].transpose(-2, -1)) /
                        std::sqrt(static_cast<double>(kWidth / kHeads));
    const auto attention =
        scores.masked_fill(hidden_future_, -std::numeric_limits<float>::infinity()).softmax(-1);
    return output_->forward(torch::matmul(attention, heads[2]).transpose(1, 2).flatten(2));
  }

 private:
  nn::Linear query_key_value_{nullptr};
  nn::Linear output_{nullptr};
  torch::Tensor hidden_future_;
};
TORCH_MODULE(Attention);

class BlockImpl : public nn::Module {
 public:
  BlockImpl() {
    attention_norm_ =
        register_module("attention_norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    attention_ = register_module("attention", Attention());
    mlp_norm_ = register_module("mlp_norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    mlp_ = register_module("mlp", nn::Sequential(nn::Linear(kWidth, 4 * kWidth), nn::GELU(),
                                                 nn::Linear(4 * kWidth, kWidth)));
  }

  torch::Tensor forward(torch::Tensor x) {
    x = x + attention_->forward(attention_norm_->forward(x));
    return x + mlp_->forward(mlp_norm_->forward(x));
  }

 private:
  nn::LayerNorm attention_norm_{nullptr};
  Attention attention_{nullptr};
  nn::LayerNorm mlp_norm_{nullptr};
  nn::Sequential mlp_{nullptr};
};
TORCH_MODULE(Block);

class TransformerImpl : public nn::Module {
 public:
  explicit TransformerImpl(int64_t alphabet_size) {
    token_ = register_module("token", nn::Embedding(alphabet_size, kWidth));
    position_ = register_module("position", nn::Embedding(kContext, kWidth));
    for (int64_t i = 0; i < kBlocks; ++i) blocks_->push_back(Block());
    register_module("blocks", blocks_);
    norm_ = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})));
    head_ =
        register_module("head", nn::Linear(nn::LinearOptions(kWidth, alphabet_size).bias(false)));
  }

  /// Symbols int64 [batch, context] to logits [batch, context, alphabet].
  torch::Tensor forward(const torch::Tensor& symbols) {
    const auto positions = torch::arange(symbols.size(1)).expand_as(symbols);
    const auto x = token_->forward(symbols) + position_->forward(positions);
    return head_->forward(norm_->forward(blocks_->forward(x)));
  }

 private:
  nn::Embedding token_{nullptr};
  nn::Embedding position_{nullptr};
  nn::Sequential blocks_;
  nn::LayerNorm norm_{nullptr};
  nn::Linear head_{nullptr};
};
TORCH_MODULE(Transformer);

/// Linear warm-up over the first tenth of the run, then half a cosine down to a tenth of the peak.
double learning_rate(int64_t step, int64_t steps) {
  constexpr double kPeak = 2e-3;
  const auto warm_up = static_cast<double>(std::max<int64_t>(steps / 10, 1));
  const auto t = static_cast<double>(step);
  if (t < warm_up) return kPeak * (t + 1) / warm_up;
  const double progress = (t - warm_up) / std::max(static_cast<double>(steps) - warm_up, 1.0);
  return kPeak * (0.1 + 0.45 * (1 + std::cos(M_PI * progress)));
}

}  // namespace

int main(int argc, char** argv) try {
  const auto arguments = tycho::examples::parse_arguments(
      argc, argv, "char_transformer", "Trains a transformer to predict the next character.",
      "text file; default: this repository's own text", 1000);
  torch::manual_seed(6);
  const auto text = tycho::examples::load_text(arguments.data);
  const auto symbols = torch::tensor(text.symbols);
  std::cout << text.symbols.size() << " characters, " << text.alphabet.size() << " different\n";

  Transformer model(static_cast<int64_t>(text.alphabet.size()));
  torch::optim::AdamW optimizer(model->parameters(),
                                torch::optim::AdamWOptions(0).betas({0.9, 0.99}).weight_decay(0.1));

  tycho::Session session(*model, optimizer, tycho::SessionOptions(arguments.run));  // Tycho 1

  for (int64_t step = 0; step < arguments.steps; ++step) {
    static_cast<torch::optim::AdamWOptions&>(optimizer.param_groups()[0].options())
        .lr(learning_rate(step, arguments.steps));
    const auto start = torch::randint(symbols.size(0) - kContext, {kBatch, 1}, torch::kInt64);
    const auto window = symbols.index({start + torch::arange(kContext + 1)});
    optimizer.zero_grad();
    const auto logits = model->forward(window.narrow(1, 0, kContext));
    auto loss =
        torch::cross_entropy_loss(logits.flatten(0, 1), window.narrow(1, 1, kContext).flatten());
    loss.backward();
    nn::utils::clip_grad_norm_(model->parameters(), 1.0);
    optimizer.step();
    session.step(loss, kBatch);  // Tycho 2: an example is a window of text
    if (step % 50 == 0) std::cout << "step " << step << "  loss " << loss.item<double>() << "\n";
  }
  session.close();  // Tycho 3
  std::cout << "run " << arguments.run << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
