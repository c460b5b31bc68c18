#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>

#include "tests/support/trace_samples.h"
#include "tycho/trace/run_writer.h"

namespace tycho::analyzer {

// Runs for tests of what serves them.

inline std::unique_ptr<trace::RunWriter> open_run(const std::string& directory,
                                                  const std::string& id) {
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer =
      trace::RunWriter::open(options, tycho::testing::sample_run(id),
                             tycho::testing::sample_model(2), tycho::testing::sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

inline void write_losses(trace::RunWriter* writer, int64_t from, int64_t to, double loss = 0) {
  for (int64_t step = from; step < to; ++step) {
    v1::Record record;
    record.set_step(step);
    auto* column = record.add_column();
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(loss != 0 ? loss : 1 / (1.0 + static_cast<double>(step)));
    const int64_t time_ns = 1'000'000'000 + step * 10'000'000;
    writer->write("loss", record, time_ns);
    writer->write("scalars", tycho::testing::sample_record(step, 2), time_ns);
  }
  EXPECT_TRUE(writer->flush().ok());
}

inline void write_run(const std::string& directory, const std::string& id) {
  auto writer = open_run(directory, id);
  write_losses(writer.get(), 0, 20);
  EXPECT_TRUE(writer->close().ok());
}

}  // namespace tycho::analyzer
