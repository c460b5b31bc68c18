// What Tycho costs a training step, as a ratio to the bare trainer: two trainers with the same
// model take turns step by step in one process, one of them with a session.
//
//   overhead_benchmark [--model mlp|cnn|transformer]... [--case NAME]... [--steps N] [--threads N]
#include <fmt/format.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

namespace nn = torch::nn;
using torch::Tensor;
using Clock = std::chrono::steady_clock;

struct Trainer {
  std::shared_ptr<nn::Module> module;
  std::function<Tensor(int64_t step)> loss;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  int64_t batch_size = 0;
};

Trainer mlp() {
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

Trainer cnn() {
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

Trainer transformer() {
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

constexpr int64_t kNever = int64_t{1} << 40;

struct Case {
  std::string name;
  std::string what;
  bool amortised;  // ratio of sums instead of medians: not every step costs the same
  std::function<void(tycho::SessionOptions&)> options;
};

void only(tycho::SessionOptions& options, const std::string& probe) {
  options.preset(tycho::Preset::standard).overhead_budget(std::nullopt);
  for (const char* name :
       {"loss", "scalars", "non_finite", "noise", "activations", "adam", "symmetry"}) {
    options.every(name, probe == name ? 1 : kNever);
  }
}

std::vector<Case> cases() {
  using tycho::Preset;
  using tycho::SessionOptions;
  std::vector<Case> all;
  all.push_back({"bare", "no session: what the method can resolve", false, nullptr});
  all.push_back({"unscheduled", "a step on which nothing is scheduled", false,
                 [](SessionOptions& options) { only(options, ""); }});
  all.push_back({"economy", "economy at every step", false, [](SessionOptions& options) {
                   options.preset(Preset::economy).overhead_budget(std::nullopt);
                 }});
  all.push_back({"noise", "exact gradient noise of all layers at every step", false,
                 [](SessionOptions& options) { only(options, "noise"); }});
  all.push_back({"activations", "activations at every step", false,
                 [](SessionOptions& options) { only(options, "activations"); }});
  all.push_back({"symmetry", "symmetries at every step", false,
                 [](SessionOptions& options) { only(options, "symmetry"); }});
  all.push_back({"standard", "standard at every step", false, [](SessionOptions& options) {
                   options.preset(Preset::standard).overhead_budget(std::nullopt);
                 }});
  all.push_back({"budget", "standard with the default budget of 2 %", true,
                 [](SessionOptions& options) { options.preset(Preset::standard); }});
  return all;
}

double train_step(Trainer& trainer, tycho::Session* session, int64_t step) {
  const auto begin = Clock::now();
  trainer.optimizer->zero_grad();
  const Tensor loss = trainer.loss(step);
  loss.backward();
  trainer.optimizer->step();
  if (session != nullptr) session->step(loss, trainer.batch_size);
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

void measure(const std::string& model, Trainer (*make)(), const Case& c, int64_t steps) {
  torch::manual_seed(1);
  Trainer bare = make();
  torch::manual_seed(1);
  Trainer observed = make();
  const auto directory = std::filesystem::temp_directory_path() /
                         fmt::format("tycho-overhead-{}-{}-{}", model, c.name, ::getpid());
  std::unique_ptr<tycho::Session> session;
  if (c.options) {
    tycho::SessionOptions options(directory.string());
    c.options(options);
    session = std::make_unique<tycho::Session>(*observed.module, *observed.optimizer, options);
  }
  std::vector<double> without;
  std::vector<double> with;
  const int64_t warm_up = std::max<int64_t>(steps / 10, 5);
  for (int64_t step = 0; step < steps + warm_up; ++step) {
    // Who goes first changes, because the second finds other things in the caches.
    double a = 0;
    double b = 0;
    if (step % 2 == 0) a = train_step(bare, nullptr, step);
    b = train_step(observed, session.get(), step);
    if (step % 2 == 1) a = train_step(bare, nullptr, step);
    if (step < warm_up) continue;
    without.push_back(a);
    with.push_back(b);
  }
  if (session) session->close();
  session.reset();
  std::filesystem::remove_all(directory);
  double ratio = median(with) / median(without);
  if (c.amortised) {
    double sum_with = 0;
    double sum_without = 0;
    for (const double seconds : with) sum_with += seconds;
    for (const double seconds : without) sum_without += seconds;
    ratio = sum_with / sum_without;
  }
  fmt::print("| {} | {} | {:.3f} | {:.3f} |\n", model, c.what, median(without) * 1e3, ratio);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, Trainer (*)()> models = {
      {"mlp", &mlp}, {"cnn", &cnn}, {"transformer", &transformer}};
  std::vector<std::string> chosen_models = {"mlp", "cnn", "transformer"};
  std::vector<std::string> chosen_cases;
  for (const Case& c : cases()) chosen_cases.push_back(c.name);
  int64_t steps = 300;
  int threads = 2;
  CLI::App app{"Measures what Tycho costs a training step."};
  app.add_option("--model", chosen_models, "mlp, cnn, transformer")
      ->check(CLI::IsMember({"mlp", "cnn", "transformer"}));
  app.add_option("--case", chosen_cases)->check(CLI::IsMember(chosen_cases));
  app.add_option("--steps", steps, "measured steps of each")->check(CLI::Range(10, 1000000));
  app.add_option("--threads", threads, "of LibTorch")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  torch::set_num_threads(threads);
  fmt::print("| model | case | bare step, ms | ratio |\n|---|---|---|---|\n");
  for (const std::string& model : chosen_models) {
    for (const Case& c : cases()) {
      if (std::find(chosen_cases.begin(), chosen_cases.end(), c.name) == chosen_cases.end())
        continue;
      measure(model, models.at(model), c, steps);
    }
  }
  return 0;
}
