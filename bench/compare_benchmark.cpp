// Comparing runs: time and memory against the length of the runs.
//   compare_benchmark DIRECTORY [RUNS [STEPS...]]     defaults: 32 runs of 1000, 10000, 100000
//   steps
// Writes synthetic sweeps over width, batch size and seed under DIRECTORY once, and compares them
// in a process of its own for each length, so that peak memory is that of one comparison.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "src/compare/comparison.h"
#include "tests/support/sweep_traces.h"

namespace {

using namespace tycho;

std::vector<std::string> write_runs(const std::string& directory, int runs, int64_t steps) {
  std::vector<std::string> paths;
  const int widths[] = {128, 256, 512, 1024};
  const double batches[] = {16, 64, 256, 1024};
  for (int i = 0; i < runs; ++i) {
    testing::SweepTrace sweep;
    sweep.width = widths[i % 4];
    sweep.batch_size = batches[i / 4 % 4];
    sweep.seed = static_cast<uint32_t>(i / 16);
    sweep.steps = steps;
    sweep.name = fmt::format("w{}-b{}-s{}", sweep.width, sweep.batch_size, sweep.seed);
    paths.push_back(fmt::format("{}/{}-{}", directory, sweep.name, steps));
    if (!std::filesystem::exists(paths.back())) testing::write_sweep_trace(paths.back(), sweep);
  }
  return paths;
}

int compare_in_child(const std::vector<std::string>& paths, int64_t steps) {
  const pid_t child = ::fork();
  if (child == 0) {
    const auto begin = std::chrono::steady_clock::now();
    auto comparison = analyzer::read_comparison(paths, {}, {});
    if (!comparison.ok()) std::_Exit(1);
    const size_t page = analyzer::html_comparison(comparison.value()).size();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print("{} runs of {} steps: {:.2f} s, peak {} MB, page of {:.1f} MB\n", paths.size(),
               steps, seconds, usage.ru_maxrss / 1024, static_cast<double>(page) / 1e6);
    std::fflush(stdout);
    std::_Exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: compare_benchmark DIRECTORY [RUNS [STEPS...]]\n");
    return 2;
  }
  const int runs = argc > 2 ? std::atoi(argv[2]) : 32;
  std::vector<int64_t> lengths;
  for (int i = 3; i < argc; ++i) lengths.push_back(std::atoll(argv[i]));
  if (lengths.empty()) lengths = {1000, 10000, 100000};
  int failures = 0;
  for (const int64_t steps : lengths) {
    // The writers' memory must not count.
    const pid_t writer = ::fork();
    if (writer == 0) {
      write_runs(argv[1], runs, steps);
      std::_Exit(0);
    }
    int status = 0;
    ::waitpid(writer, &status, 0);
    failures += compare_in_child(write_runs(argv[1], runs, steps), steps);
  }
  return failures == 0 ? 0 : 1;
}
