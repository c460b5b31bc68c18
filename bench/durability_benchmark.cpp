// What it costs to keep little at risk: a chunk twice in RunWriterOptions::at_risk, however small
// (processor time, of the writer's thread), and a sync (wall time, of the same thread).
//   durability_benchmark [DIRECTORY [PROBES [LAYERS]]]     defaults: /tmp 20 60
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <string>
#include <vector>

#include "tycho/trace/file_system.h"
#include "tycho/trace/run_writer.h"

namespace {

using namespace tycho;

double milliseconds(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
}

template <typename Work>
double spent(clockid_t clock, Work work) {
  const double begin = milliseconds(clock);
  work();
  return milliseconds(clock) - begin;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

v1::Record record_of(int64_t step, int probe, int layers) {
  v1::Record record;
  record.set_step(step);
  auto* column = record.add_column();
  column->set_scope(v1::SCOPE_LAYER);
  for (int i = 0; i < layers; ++i) {
    column->add_entity(static_cast<uint32_t>(i));
    column->add_value(std::sqrt(1.0 + static_cast<double>(step) + 100 * i + 7 * probe));
  }
  return record;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string parent = argc > 1 ? argv[1] : "/tmp";
  const int probes = argc > 2 ? std::atoi(argv[2]) : 20;
  const int layers = argc > 3 ? std::atoi(argv[3]) : 60;
  const std::string directory = fmt::format("{}/tycho-durability-{}", parent, ::getpid());
  trace::RunWriterOptions options;
  options.directory = directory;
  options.sync_interval = std::chrono::milliseconds(-1);
  auto writer = trace::RunWriter::open(options, {}, {}, {});
  if (!writer.ok()) {
    fmt::print(stderr, "{}\n", writer.status().message());
    return 1;
  }
  constexpr int kFlushes = 200;
  for (const int steps_per_flush : {1, 10, 100}) {
    std::vector<double> time;
    const uint64_t before = writer.value()->bytes_written();
    for (int flush = 0; flush < kFlushes; ++flush) {
      for (int step = 0; step < steps_per_flush; ++step) {
        for (int probe = 0; probe < probes; ++probe)
          writer.value()->write(fmt::format("p{}", probe), record_of(step, probe, layers), step);
      }
      time.push_back(spent(CLOCK_THREAD_CPUTIME_ID, [&] { (void)writer.value()->flush(); }));
    }
    const double bytes = static_cast<double>(writer.value()->bytes_written() - before) / kFlushes;
    fmt::print("{:4} steps in a chunk: {:.2f} ms to write it, {:.1f} kB, {:.0f} bytes a step\n",
               steps_per_flush, median(time), bytes / 1000, bytes / steps_per_flush);
  }
  (void)writer.value()->close();
  auto file = trace::FileSystem::system()->create(directory + "/sync");
  std::vector<double> time;
  const std::string bytes(10000, 'x');
  for (int i = 0; file.ok() && i < kFlushes; ++i) {
    (void)file.value()->append(bytes);
    time.push_back(spent(CLOCK_MONOTONIC, [&] { (void)file.value()->sync(); }));
  }
  if (!time.empty()) {
    fmt::print("a sync of 10 kB: median {:.2f} ms, longest {:.2f} ms\n", median(time),
               *std::max_element(time.begin(), time.end()));
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return 0;
}
