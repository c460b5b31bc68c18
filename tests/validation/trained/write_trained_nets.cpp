// Writes docs/trained_nets.md: ordinary networks, each trained with fresh seeds, and which laws
// said VIOLATED about them. write_trained_nets FILE [SEEDS [KIND]]
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "ordinary_nets.h"
#include "src/report/report.h"

namespace {

using tycho::Preset;
using tycho::analyzer::Finding;
using tycho::analyzer::Verdict;
namespace validation = tycho::validation;

/// What the report said of one run.
struct Said {
  std::set<std::string> speaking;  // laws with HOLDS, VIOLATED or UNDERPOWERED about the whole run
  std::set<std::string> holds;
  std::map<std::string, std::string> violated;  // laws, also about a part; the first gate
};

Said read(const std::vector<std::string>& directories) {
  Said said;
  for (const std::string& directory : directories) {
    const auto report = tycho::analyzer::read_report(directory, nullptr);
    if (!report.ok()) throw std::runtime_error(report.status().message());
    for (const Finding& finding : report.value().findings) {
      if (finding.verdict == Verdict::kViolated) {
        said.violated.emplace(
            finding.law,
            fmt::format("{}: measured {:.4g} [{:.4g}, {:.4g}], predicted {:.4g}; "
                        "{}; {}",
                        finding.scope, finding.measured, finding.ci_low, finding.ci_high,
                        finding.predicted, finding.gate, finding.advice));
      }
      if (finding.scope != "run") continue;
      if (finding.verdict == Verdict::kHolds) said.holds.insert(finding.law);
      if (finding.verdict == Verdict::kHolds || finding.verdict == Verdict::kViolated ||
          finding.verdict == Verdict::kUnderpowered) {
        said.speaking.insert(finding.law);
      }
    }
  }
  return said;
}

/// The lower middle.
size_t median(std::vector<size_t> values) {
  std::sort(values.begin(), values.end());
  return values[(values.size() - 1) / 2];
}

/// A row of the table; counts what was violated.
std::string measure(const validation::OrdinaryNet& net, Preset preset,
                    const std::string& preset_name, int seeds, double length,
                    std::map<std::string, int>* violations, int* runs, int* violating) {
  static std::random_device device;
  const auto directory =
      std::filesystem::temp_directory_path() / ("tycho_trained_nets_" + std::to_string(getpid()));
  std::vector<size_t> speaking;
  std::vector<size_t> holding;
  std::map<std::string, int> here;
  int with_any = 0;
  for (int i = 0; i < seeds; ++i) {
    const uint64_t seed = device();
    std::filesystem::remove_all(directory);
    const Said said = read(net.train(seed, preset, length, directory.string()));
    speaking.push_back(said.speaking.size());
    holding.push_back(said.holds.size());
    with_any += !said.violated.empty();
    std::cerr << net.name << " " << preset_name << " " << seed << ": " << said.holds.size()
              << " of " << said.speaking.size() << " hold\n";
    for (const auto& [law, why] : said.violated) {
      ++here[law];
      ++(*violations)[law];
      std::cerr << "  " << law << " " << why << "\n";
    }
  }
  std::filesystem::remove_all(directory);
  *runs += seeds;
  *violating += with_any;
  std::string laws;
  for (const auto& [law, count] : here) {
    laws += fmt::format("{}`{}` {}", laws.empty() ? "" : ", ", law, count);
  }
  return fmt::format("| {} | {} | {} | {} | {} | {} | {} |\n", net.name, preset_name, seeds,
                     median(speaking), median(holding), with_any, laws.empty() ? "none" : laws);
}

void write(const std::string& path, int seeds, double length, const std::string& kind) {
  std::string rows;
  std::string kinds;
  std::map<std::string, int> violations;
  int runs = 0;
  int violating = 0;
  for (const validation::OrdinaryNet& net : validation::ordinary_nets()) {
    if (!kind.empty() && net.name != kind) continue;
    kinds += fmt::format("- {}: {}\n", net.name, net.what);
    for (const auto& [preset, name] :
         {std::pair(Preset::standard, "`standard`"), std::pair(Preset::full, "`full`")}) {
      rows += measure(net, preset, name, seeds, length, &violations, &runs, &violating);
    }
  }
  std::ofstream(path) << fmt::format(
      "# Verdicts on ordinary networks\n\n"
      "Written by `build/<preset>/bin/write_trained_nets docs/trained_nets.md {} {}` (runs of each "
      "row, length): networks as people train them, with three lines and the default budget. Each "
      "run has a fresh seed that also draws width, depth, rate, batch, regularisation and schedule "
      "(tests/validation/trained/ordinary_nets.cpp). The length multiplies the steps below. A law "
      "that is VIOLATED is a false alarm, or a case outside its theory that its gate should have "
      "excluded. The exception is `loss_forecast`, which is violated if the loss left the course "
      "of "
      "its first part. \"With a result\" is the median number of laws with HOLDS, VIOLATED or "
      "UNDERPOWERED for the whole run.\n\n{}\n"
      "**{} of {} runs have a law that is VIOLATED.**\n\n"
      "| network | preset | runs | laws with a result | HOLDS | runs with VIOLATED | laws |\n"
      "| --- | --- | ---: | ---: | ---: | ---: | --- |\n{}",
      seeds, length, kinds, violating, runs, rows);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: write_trained_nets FILE [SEEDS [LENGTH [KIND]]]\n";
    return 2;
  }
  write(argv[1], argc > 2 ? std::max(std::atoi(argv[2]), 1) : 10,
        argc > 3 ? std::max(std::atof(argv[3]), 1e-3) : 1, argc > 4 ? argv[4] : "");
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
