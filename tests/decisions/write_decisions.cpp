// Writes docs/decisions.md: known faults and healthy runs, each with fresh seeds, what the report
// decided first, and what came of it. write_decisions FILE [SEEDS]
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>

#include "faults.h"

namespace {

using namespace tycho::decisions;  // NOLINT(google-build-using-namespace)

std::string first_of(const Verdict& verdict) {
  return verdict.decisions.empty() ? "none" : "`" + verdict.decisions.front().code + "`";
}

Verdict run(RunSetup setup) {
  static std::random_device device;
  setup.seed = device();
  const auto directory = std::filesystem::temp_directory_path() /
                         ("tycho_write_decisions_" + std::to_string(getpid()));
  return decide(setup, directory.string());
}

void write(const std::string& path, int seeds) {
  std::string rows;
  int runs = 0;
  int named = 0;
  int improved = 0;
  for (const Fault& fault : faults()) {
    for (int i = 0; i < seeds; ++i) {
      RunSetup setup = baseline(fault.baseline);
      fault.make(&setup);
      const Verdict verdict = run(setup);
      ++runs;
      named += verdict.names(fault.code);
      improved += verdict.improves();
      rows += fmt::format("| {} | {} | {}{} | {:.3g} | {:.3g} |\n", fault.baseline, fault.name,
                          first_of(verdict), verdict.names(fault.code) ? "" : " (missed)",
                          verdict.loss, verdict.loss_followed);
      std::cerr << "." << std::flush;
    }
  }
  std::string healthy;
  int left_alone = 0;
  int healthy_runs = 0;
  for (const char* name : {"mlp", "mlp_adam", "cnn", "transformer"}) {
    for (int i = 0; i < 2 * seeds; ++i) {
      const Verdict verdict = run(baseline(name));
      bool urgent = false;
      for (const auto& each : verdict.decisions)
        urgent = urgent || each.severity != tycho::analyzer::Severity::kNote;
      ++healthy_runs;
      left_alone += !urgent;
      healthy += fmt::format("| {} | {} | {:.3g} |\n", name, first_of(verdict), verdict.loss);
      std::cerr << "." << std::flush;
    }
  }
  std::ofstream(path) << fmt::format(
      "# Decisions, on runs with a known fault\n\n"
      "Written by `build/<preset>/bin/write_decisions docs/decisions.md {}`, with fresh seeds. "
      "Small "
      "networks (tests/decisions/lab.h) are trained with three lines and default options; each "
      "report's first decision is carried out, and the run repeated. Losses are held-out ones at "
      "the end. The thresholds of the rules were chosen with runs of these networks, with other "
      "seeds. There is no rule yet for random labels, a missing warm-up, and a batch that is too "
      "large before its noise scale is known; sorted examples are named only where the network "
      "survives them for some hundred steps.\n\n"
      "- Named first: {} of {} faults.\n- Improved by a twentieth or more by following it: {} of "
      "{}.\n- Healthy runs without an urgent decision: {} of {}.\n\n"
      "| network | fault | first decision | loss | loss when followed |\n| --- | --- | --- | ---: "
      "| "
      "---: |\n{}\n## Healthy runs\n\n| network | first decision | loss |\n| --- | --- | ---: "
      "|\n{}",
      seeds, named, runs, improved, runs, left_alone, healthy_runs, rows, healthy);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: write_decisions FILE [SEEDS]\n";
    return 2;
  }
  write(argv[1], argc > 2 ? std::max(std::atoi(argv[2]), 1) : 2);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
