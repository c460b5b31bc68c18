// What Tycho costs a whole process, from construction to close, beside what the trace says of it:
// pairs of processes, one bare and one with a session, each measured by the CPU time (user and
// system) that the kernel counted for it. The first step and the beginning and the end of a session
// are in it.
//
//   process_benchmark [--model mlp|cnn|transformer]... [--case economy|standard|full|budget]...
//                     [--steps N] [--pairs N] [--threads N]
#include <fmt/format.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <tycho/trace/run_reader.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "models.h"

extern char** environ;

namespace {

using tycho::bench::Trainer;

const std::map<std::string, Trainer (*)()> kModels = {{"mlp", &tycho::bench::mlp},
                                                      {"cnn", &tycho::bench::cnn},
                                                      {"transformer", &tycho::bench::transformer}};
const std::vector<std::string> kCases = {"economy", "standard", "full", "budget"};

// Everything at every step, but for "budget", which is `standard` as it comes.
tycho::SessionOptions options_of(const std::string& name, const std::string& directory) {
  tycho::SessionOptions options(directory);
  options.preset(name == "economy" ? tycho::Preset::economy
                 : name == "full"  ? tycho::Preset::full
                                   : tycho::Preset::standard);
  if (name != "budget") options.overhead_budget(std::nullopt);
  return options;
}

// The trainer that is measured, in a process of its own. Without a directory: bare.
int train(const std::string& model, const std::string& name, int64_t steps,
          const std::string& directory) {
  torch::manual_seed(1);
  Trainer trainer = kModels.at(model)();
  std::unique_ptr<tycho::Session> session;
  if (!directory.empty()) {
    session = std::make_unique<tycho::Session>(*trainer.module, *trainer.optimizer,
                                               options_of(name, directory));
  }
  for (int64_t step = 0; step < steps; ++step) {
    trainer.optimizer->zero_grad();
    const torch::Tensor loss = trainer.loss(step);
    loss.backward();
    trainer.optimizer->step();
    if (session) session->step(loss, trainer.batch_size);
  }
  if (session) session->close();
  return 0;
}

// CPU seconds of a process of this program with these arguments; negative where it failed.
double cpu_seconds(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  if (::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv.data(), environ) != 0)
    return -1;
  int status = 0;
  rusage usage{};
  if (::wait4(child, &status, 0, &usage) != child || status != 0) return -1;
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct LastHealth : tycho::trace::MessageHandler {
  tycho::v1::Health health;
  bool on_health(const tycho::v1::Health& message, int64_t) override {
    health = message;
    return true;
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t size = values.size();
  return size == 0 ? 0 : (values[(size - 1) / 2] + values[size / 2]) / 2;
}

bool measure(const std::string& program, const std::string& model, const std::string& name,
             int64_t steps, int64_t pairs, int threads) {
  std::vector<double> bare;
  std::vector<double> more;
  std::vector<double> told;
  std::vector<double> told_wall;
  bool at_least = false;
  const auto directory = std::filesystem::temp_directory_path() /
                         fmt::format("tycho-process-{}-{}-{}", model, name, ::getpid());
  for (int64_t pair = 0; pair < pairs; ++pair) {
    std::filesystem::remove_all(directory);
    double seconds[2] = {};
    // Who goes first changes, because the machine's speed drifts.
    for (const int turn : {0, 1}) {
      const int with = turn == static_cast<int>(pair % 2) ? 0 : 1;
      std::vector<std::string> arguments = {program,
                                            "--child",
                                            model,
                                            "--case",
                                            name,
                                            "--steps",
                                            std::to_string(steps),
                                            "--threads",
                                            std::to_string(threads)};
      if (with == 1) {
        arguments.push_back("--directory");
        arguments.push_back(directory.string());
      }
      seconds[with] = cpu_seconds(arguments);
      if (seconds[with] < 0) {
        fmt::print(stderr, "process_benchmark: a trainer failed\n");
        return false;
      }
    }
    auto reader = tycho::trace::RunReader::open(directory.string());
    LastHealth last;
    if (!reader.ok() || !std::move(reader).value()->read(last).ok()) {
      fmt::print(stderr, "process_benchmark: the trace cannot be read\n");
      return false;
    }
    const tycho::v1::Health& health = last.health;
    bare.push_back(seconds[0]);
    more.push_back(seconds[1] - seconds[0]);
    told.push_back(health.tycho_cpu_seconds());
    told_wall.push_back(health.tycho_seconds() / health.training_seconds());
    at_least = at_least || health.cost_is_lower_bound();
  }
  std::filesystem::remove_all(directory);
  fmt::print("| {} | {} | {:.2f} | {:.2f} | {:.3f} | {}{:.3f} | {:.2f} | {:.1f} % |\n", model, name,
             median(bare), 1 + median(more) / median(bare), median(more),
             at_least ? "at least " : "", median(told), median(told) / median(more),
             100 * median(told_wall));
  std::fflush(stdout);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> models = {"mlp", "cnn", "transformer"};
  std::vector<std::string> cases = kCases;
  std::string child;
  std::string directory;
  int64_t steps = 300;
  int64_t pairs = 5;
  int threads = 1;
  CLI::App app{"Measures what Tycho costs a whole process, and what the trace says of it."};
  app.add_option("--model", models)->check(CLI::IsMember({"mlp", "cnn", "transformer"}));
  app.add_option("--case", cases)->check(CLI::IsMember(kCases));
  app.add_option("--steps", steps)->check(CLI::Range(1, 1000000));
  app.add_option("--pairs", pairs)->check(CLI::Range(1, 1000));
  app.add_option("--threads", threads, "of LibTorch")->check(CLI::Range(1, 1024));
  app.add_option("--child", child, "train this model, and measure nothing");
  app.add_option("--directory", directory, "of the child's run; without: bare");
  CLI11_PARSE(app, argc, argv);
  torch::set_num_threads(threads);
  if (!child.empty()) return train(child, cases.front(), steps, directory);
  fmt::print(
      "| model | case | bare, CPU s | ratio | Tycho, CPU s | the trace says | said / measured "
      "| share of wall time, as told |\n|---|---|---|---|---|---|---|---|\n");
  for (const std::string& model : models) {
    for (const std::string& name : cases) {
      if (!measure(argv[0], model, name, steps, pairs, threads)) return 1;
    }
  }
  return 0;
}
