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

#include "models.h"

namespace {

using torch::Tensor;
using tycho::bench::Trainer;
using Clock = std::chrono::steady_clock;

constexpr int64_t kNever = int64_t{1} << 40;

struct Case {
  std::string name;
  std::string what;
  bool amortised;  // ratio of sums instead of medians: not every step costs the same
  std::function<void(tycho::SessionOptions&)> options;
  bool probe_loss = false;  // that of the first batch
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
  all.push_back({"spectral_norms", "spectral norms of all layers at every tenth step", true,
                 [](SessionOptions& options) {
                   only(options, "");
                   options.every("spectral_norms", 10);
                 }});
  all.push_back({"standard", "standard at every step", false, [](SessionOptions& options) {
                   options.preset(Preset::standard).overhead_budget(std::nullopt);
                 }});
  all.push_back({"budget", "standard with the default budget of 2 %", true,
                 [](SessionOptions& options) { options.preset(Preset::standard); }});
  all.push_back({"full_budget", "full, with curvature and features, with the default budget of 2 %",
                 true, [](SessionOptions& options) { options.preset(Preset::full); }, true});
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
    if (c.probe_loss) session->set_probe_loss([&observed] { return observed.loss(0); });
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
  const std::map<std::string, Trainer (*)()> models = {{"mlp", &tycho::bench::mlp},
                                                       {"cnn", &tycho::bench::cnn},
                                                       {"transformer", &tycho::bench::transformer}};
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
