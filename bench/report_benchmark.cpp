// The report of a long run against only decoding its trace.
//   report_benchmark [STEPS [LAYERS [STATISTICS]]]     defaults: 100000 60 20
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "src/report/report.h"
#include "tycho/trace/run_writer.h"

namespace {

using namespace tycho;

template <typename Work>
double seconds(Work work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Names that laws read come first, so that they have work to do.
const char* const kNames[] = {
    "weight_norm_sq",    "grad_norm_sq",    "update_norm_sq", "weight_dot_grad",
    "weight_dot_update", "grad_dot_update", "angular_update", "per_example_grad_norm_sq",
    "grad_noise_trace",  "grad_signal_sq"};

// Returns the bytes of payload and the seconds that writing them took, without making them.
std::pair<double, double> write_run(const std::string& directory, int64_t steps, int layers,
                                    int statistics) {
  v1::RunDescription run;
  run.set_run_id("benchmark");
  run.set_optimizer("SGD");
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  for (int i = 0; i < layers; ++i) {
    const auto id = static_cast<uint32_t>(i);
    auto* layer = model.add_layer();
    layer->set_id(id);
    layer->set_path(fmt::format("blocks.{}", i));
    layer->add_parameter(id);
    auto* parameter = model.add_parameter();
    parameter->set_id(id);
    parameter->set_name(fmt::format("blocks.{}.weight", i));
    parameter->set_layer(id);
    parameter->set_element_count(1000);
    parameter->set_requires_grad(true);
  }
  for (int i = 0; i < statistics; ++i) {
    auto* statistic = registry.add_statistic();
    statistic->set_id(static_cast<uint32_t>(i));
    statistic->set_name(i < 10 ? kNames[i] : fmt::format("statistic_{}", i));
    statistic->add_scope(v1::SCOPE_PARAMETER);
  }
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, run, model, registry);
  if (!writer.ok()) throw std::runtime_error(writer.status().message());
  uint64_t noise = 1;
  double bytes = 0;
  double writing = 0;
  for (int64_t step = 0; step < steps; ++step) {
    v1::Record record;
    record.set_step(step);
    for (int s = 0; s < statistics; ++s) {
      auto* column = record.add_column();
      column->set_statistic(static_cast<uint32_t>(s));
      column->set_scope(v1::SCOPE_PARAMETER);
      for (int i = 0; i < layers; ++i) {
        noise = noise * 6364136223846793005u + 1442695040888963407u;
        column->add_entity(static_cast<uint32_t>(i));
        column->add_value(1.0 + 1e-19 * static_cast<double>(noise >> 4));
      }
    }
    bytes += static_cast<double>(record.ByteSizeLong());
    writing += seconds([&] { writer.value()->write("scalars", record, step); });
  }
  Status status;
  writing += seconds([&] { status = writer.value()->close(); });
  if (!status.ok()) throw std::runtime_error(status.message());
  return {bytes, writing};
}

long peak_megabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t steps = argc > 1 ? std::atoll(argv[1]) : 100000;
  const int layers = argc > 2 ? std::atoi(argv[2]) : 60;
  const int statistics = argc > 3 ? std::atoi(argv[3]) : 20;
  const auto directory =
      std::filesystem::temp_directory_path() / fmt::format("tycho-report-benchmark-{}", ::getpid());
  const auto [bytes, writing] = write_run(directory.string(), steps, layers, statistics);
  fmt::print("write {:.0f} MB of payload: {:.0f} MB/s\n", bytes / 1e6, bytes / writing / 1e6);
  std::vector<double> decode;
  std::vector<double> report;
  size_t page = 0;
  for (int round = 0; round < 3; ++round) {
    decode.push_back(seconds([&] {
      auto reader = trace::RunReader::open(directory.string());
      trace::MessageHandler nobody;
      if (!reader.ok() || !reader.value()->read(nobody).ok()) std::abort();
    }));
    report.push_back(seconds([&] {
      const auto read = analyzer::read_report(directory.string(), {});
      if (!read.ok()) std::abort();
      page = analyzer::html_report(read.value()).size();
    }));
  }
  fmt::print(
      "{} steps x {} layers x {} statistics: decode {:.2f} s, report {:.2f} s, ratio {:.2f}, "
      "peak memory {} MB, page {:.1f} MB\n",
      steps, layers, statistics, median(decode), median(report), median(report) / median(decode),
      peak_megabytes(), static_cast<double>(page) / 1e6);
  std::filesystem::remove_all(directory);
  return 0;
}
