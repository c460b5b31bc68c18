#include "trace_samples.h"

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <iterator>

namespace tycho::testing {

ScratchDirectory::ScratchDirectory() {
  static std::atomic<int> next{0};
  root_ = std::filesystem::canonical(std::filesystem::temp_directory_path()) /
          ("tycho-test-" + std::to_string(::getpid()) + "-" + std::to_string(next++));
  std::filesystem::create_directories(root_);
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(root_, ignored);
}

v1::RunDescription sample_run(const std::string& run_id) {
  v1::RunDescription run;
  run.set_run_id(run_id);
  run.set_run_name("sample");
  run.set_start_time_ns(1000);
  (*run.mutable_versions())["tycho"] = "0.1.0";
  run.add_command_line("trainer");
  return run;
}

v1::ModelDescription sample_model(int layers) {
  v1::ModelDescription model;
  for (int i = 0; i < layers; ++i) {
    auto* layer = model.add_layer();
    layer->set_id(static_cast<uint32_t>(i));
    layer->set_path("layers." + std::to_string(i));
    layer->set_type("torch::nn::LinearImpl");
    layer->add_parameter(static_cast<uint32_t>(i));
    auto* parameter = model.add_parameter();
    parameter->set_id(static_cast<uint32_t>(i));
    parameter->set_name(layer->path() + ".weight");
    parameter->set_layer(layer->id());
  }
  return model;
}

v1::StatisticRegistry sample_registry() {
  v1::StatisticRegistry registry;
  const char* const names[] = {"loss", "weight_norm_sq", "grad_norm_sq"};
  for (uint32_t i = 0; i < 3; ++i) {
    auto* statistic = registry.add_statistic();
    statistic->set_id(i);
    statistic->set_name(names[i]);
    statistic->set_unit("1");
    statistic->set_probe(i == 0 ? "loss" : "scalars");
    statistic->add_scope(i == 0 ? v1::SCOPE_RUN : v1::SCOPE_PARAMETER);
  }
  return registry;
}

double sample_value(int64_t step, uint32_t statistic, uint32_t entity) {
  return 1.0 / (1.0 + static_cast<double>(step)) + 0.25 * statistic + 0.001 * entity;
}

v1::Record sample_record(int64_t step, int layers) {
  v1::Record record;
  record.set_step(step);
  for (uint32_t statistic = 1; statistic <= 2; ++statistic) {
    auto* column = record.add_column();
    column->set_statistic(statistic);
    column->set_scope(v1::SCOPE_PARAMETER);
    for (int i = 0; i < layers; ++i) {
      column->add_entity(static_cast<uint32_t>(i));
      column->add_value(sample_value(step, statistic, static_cast<uint32_t>(i)));
    }
  }
  return record;
}

void write_steps(trace::RunWriter* writer, int64_t from, int64_t to, int layers) {
  for (int64_t step = from; step < to; ++step) {
    writer->write("scalars", sample_record(step, layers), 1000 + step);
    if (step % 7 == 3) {
      v1::Event event;
      event.set_step(step);
      event.set_kind(v1::Event::NOTICE);
      event.set_code("sample");
      writer->write(event, 1000 + step);
    }
  }
}

bool Collector::on_segment(const trace::SegmentInfo&, const v1::RunDescription& run,
                           const v1::ModelDescription& new_model,
                           const v1::StatisticRegistry& new_registry) {
  runs.push_back(run);
  model = new_model;
  registry = new_registry;
  return true;
}
bool Collector::on_record(const std::string& probe, const v1::Record& record, int64_t) {
  records.emplace_back(probe, record);
  return true;
}
bool Collector::on_event(const v1::Event& event, int64_t) {
  events.push_back(event);
  return true;
}
bool Collector::on_health(const v1::Health& health, int64_t) {
  healths.push_back(health);
  return true;
}
bool Collector::on_optimizer(const v1::OptimizerSettings& settings, int64_t) {
  optimizers.push_back(settings);
  return true;
}
bool Collector::on_structure(const v1::ModelStructure& structure, int64_t) {
  structures.push_back(structure);
  return true;
}
bool Collector::on_finding(const v1::Finding& finding, int64_t) {
  findings.push_back(finding);
  return true;
}
bool Collector::on_skipped(const trace::SkippedRegion& region) {
  skipped.push_back(region);
  return true;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace tycho::testing
