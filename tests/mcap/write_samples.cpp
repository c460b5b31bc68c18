// Writes a run of every kind the writer can make, for an MCAP reader that is not ours.
//   write_mcap_samples DIRECTORY
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>

#include "tests/support/trace_samples.h"

namespace {

using namespace tycho;

void write_run(const std::string& directory, const v1::RunDescription& run,
               const std::function<void(trace::RunWriterOptions*)>& change,
               const std::function<void(trace::RunWriter*)>& write) {
  trace::RunWriterOptions options;
  options.directory = directory;
  change(&options);
  auto writer =
      trace::RunWriter::open(options, run, testing::sample_model(6), testing::sample_registry());
  if (!writer.ok()) throw std::runtime_error(writer.status().message());
  write(writer.value().get());
  if (Status status = writer.value()->close(); !status.ok())
    throw std::runtime_error(status.message());
}

void write_awkward_numbers(trace::RunWriter* writer) {
  using Limits = std::numeric_limits<double>;
  for (int64_t step : {int64_t{0}, int64_t{1}, int64_t{1} << 60}) {
    v1::Record record;
    record.set_step(step);
    v1::Column* column = record.add_column();
    column->set_statistic(1);
    column->set_scope(v1::SCOPE_PARAMETER);
    const double values[] = {Limits::quiet_NaN(),  Limits::infinity(), -Limits::infinity(),
                             Limits::denorm_min(), Limits::max(),      -0.0};
    for (uint32_t i = 0; i < 6; ++i) {
      column->add_entity(i);
      column->add_value(values[i]);
      column->add_standard_error(i % 2 == 0 ? Limits::quiet_NaN() : 0.5);
    }
    writer->write("scalars", record, 1000 + (step & 1));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: write_mcap_samples DIRECTORY\n");
    return 2;
  }
  const std::string root = argv[1];
  const auto run = [&](const char* name) { return root + "/" + name; };
  const auto steps = [](int64_t from, int64_t to) {
    return [=](trace::RunWriter* writer) { testing::write_steps(writer, from, to, 6); };
  };
  using Options = trace::RunWriterOptions;
  write_run(
      run("plain"), testing::sample_run("plain"), [](Options*) {}, steps(0, 500));
  write_run(
      run("many_chunks"), testing::sample_run("many_chunks"),
      [](Options* options) { options->chunk_bytes = 1000; }, steps(0, 3000));
  write_run(
      run("uncompressed"), testing::sample_run("uncompressed"),
      [](Options* options) {
        options->compression_level = 0;
        options->chunk_bytes = 5000;
      },
      steps(0, 300));
  write_run(
      run("many_segments"), testing::sample_run("many_segments"),
      [](Options* options) {
        options->chunk_bytes = 2000;
        options->segment_bytes = 20000;
      },
      steps(0, 800));
  write_run(
      run("empty"), testing::sample_run("empty"), [](Options*) {}, [](trace::RunWriter*) {});
  write_run(
      run("awkward_numbers"), testing::sample_run("awkward_numbers"), [](Options*) {},
      write_awkward_numbers);
  write_run(
      run("resumed"), testing::sample_run("resumed"), [](Options*) {}, steps(0, 100));
  // Small enough to be kept: tests/golden/traces holds what an earlier version wrote.
  write_run(
      run("few"), testing::sample_run("few"), [](Options*) {}, steps(0, 6));
  v1::RunDescription resumed_few = testing::sample_run("few");
  resumed_few.set_resumed(true);
  resumed_few.set_resume_step(4);
  write_run(
      run("few"), resumed_few, [](Options*) {}, steps(4, 9));
  v1::RunDescription resumed = testing::sample_run("resumed");
  resumed.set_resumed(true);
  resumed.set_resume_step(80);
  write_run(
      run("resumed"), resumed, [](Options*) {}, steps(80, 160));
  return 0;
}
