#include "tests/golden/golden_run.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace tycho::testing {
namespace {

std::unique_ptr<trace::RunWriter> open_run(const std::string& directory,
                                           const v1::RunDescription& run,
                                           const v1::ModelDescription& model) {
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, run, model, sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

v1::Record loss_record(int64_t step, double value) {
  v1::Record record;
  record.set_step(step);
  auto* column = record.add_column();
  column->set_statistic(0);
  column->set_scope(v1::SCOPE_RUN);
  column->add_value(value);
  return record;
}

}  // namespace

void write_golden_run(const std::string& directory) {
  v1::RunDescription run = sample_run("golden");
  run.set_run_name(kHostileName);
  (*run.mutable_options())["note"] = kHostileName;
  v1::ModelDescription model = sample_model(2);
  model.mutable_layer(0)->set_path(kHostileName);
  model.mutable_parameter(0)->set_name("a,\"b\"");
  auto writer = open_run(directory, run, model);
  using Limits = std::numeric_limits<double>;
  writer->write("loss", loss_record(0, 0.1), 1000000000);
  // A NaN with its sign set is what x86 makes of 0/0.
  writer->write("loss", loss_record(1, std::copysign(Limits::quiet_NaN(), -1.0)), 2000000000);
  writer->write("loss", loss_record(2, -Limits::infinity()), 3000000000);
  v1::Record record;
  record.set_step(2);
  auto* column = record.add_column();
  column->set_statistic(1);
  column->set_scope(v1::SCOPE_PARAMETER);
  column->add_entity(0);
  column->add_entity(1);
  column->add_value(Limits::denorm_min());
  column->add_value(Limits::max());
  column->add_standard_error(0.5);
  column->add_standard_error(Limits::quiet_NaN());
  writer->write("scalars", record, 3000000000);
  v1::Event event;
  event.set_step(1);
  event.set_kind(v1::Event::NON_FINITE);
  event.set_code("non_finite");
  event.set_message(kHostileName);
  event.set_count(1);
  writer->write(event, 2000000000);
  EXPECT_TRUE(writer->close().ok());
}

void write_list_run(const std::string& directory) {
  v1::StatisticRegistry registry;
  v1::StatisticDefinition* definition = registry.add_statistic();
  definition->set_name("hessian_eigenvalue");
  definition->add_scope(v1::SCOPE_INDEX);
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, sample_run("list"), sample_model(1), registry);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  const std::vector<std::vector<double>> lists = {{3, 2}, {4}};
  for (size_t step = 0; step < lists.size(); ++step) {
    v1::Record record;
    record.set_step(static_cast<int64_t>(step));
    auto* column = record.add_column();
    column->set_scope(v1::SCOPE_INDEX);
    for (size_t i = 0; i < lists[step].size(); ++i) {
      column->add_entity(static_cast<uint32_t>(i));
      column->add_value(lists[step][i]);
    }
    writer.value()->write("curvature", record, 1000);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

void write_curvature_run(const std::string& directory) {
  struct List {
    const char* statistic;
    v1::Scope scope;
    std::vector<double> values;
  };
  const std::vector<List> lists = {
      {"preconditioned_sharpness", v1::SCOPE_RUN, {30}},
      {"preconditioned_sharpness_error_bound", v1::SCOPE_RUN, {1}},
      {"stability_threshold", v1::SCOPE_RUN, {40}},
      {"preconditioned_eigenvector_share", v1::SCOPE_LAYER, {0.3, 0.7}},
      {"hessian_eigenvalue", v1::SCOPE_INDEX, {30, 20, 10}},
      {"spectral_density_node", v1::SCOPE_INDEX, {-1, 0, 29}},
      {"spectral_density_weight", v1::SCOPE_INDEX, {0.1, 0.899, 0.001}},
  };
  v1::StatisticRegistry registry;
  for (const List& list : lists) {
    v1::StatisticDefinition* definition = registry.add_statistic();
    definition->set_id(static_cast<uint32_t>(registry.statistic_size()) - 1);
    definition->set_name(list.statistic);
    definition->add_scope(list.scope);
  }
  trace::RunWriterOptions options;
  options.directory = directory;
  auto writer = trace::RunWriter::open(options, sample_run("curved"), sample_model(2), registry);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (int64_t step = 0; step < 10; ++step) {
    v1::Record record;
    record.set_step(step);
    for (size_t i = 0; i < lists.size(); ++i) {
      auto* column = record.add_column();
      column->set_statistic(static_cast<uint32_t>(i));
      column->set_scope(lists[i].scope);
      for (size_t k = 0; k < lists[i].values.size(); ++k) {
        if (lists[i].scope != v1::SCOPE_RUN) column->add_entity(static_cast<uint32_t>(k));
        column->add_value(lists[i].values[k]);
      }
    }
    writer.value()->write("curvature", record, 1000 + step);
  }
  EXPECT_TRUE(writer.value()->close().ok());
}

void write_long_run(const std::string& directory, int64_t steps) {
  auto writer = open_run(directory, sample_run("long"), sample_model(4));
  for (int64_t step = 0; step < steps; ++step) {
    writer->write("loss", loss_record(step, sample_value(step, 0, 0)), 1000 + step);
    writer->write("scalars", sample_record(step, 4), 1000 + step);
  }
  EXPECT_TRUE(writer->close().ok());
}

}  // namespace tycho::testing
