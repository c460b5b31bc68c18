#include "tests/support/sweep_traces.h"

#include <cmath>
#include <filesystem>
#include <random>
#include <stdexcept>
#include <vector>

#include "tycho/trace/run_writer.h"

namespace tycho::testing {
namespace {

const char* const kOfRuns[] = {"loss",
                               "batch_size",
                               "learning_rate",
                               "output_change",
                               "preconditioned_sharpness",
                               "stability_threshold"};
const char* const kOfLayers[] = {"feature_rms",       "feature_change",       "effective_update",
                                 "propagated_change", "update_spectral_norm", "grad_norm_sq"};

void add_layer(const std::string& path, int64_t rows, int64_t columns,
               v1::ModelDescription* model) {
  v1::Layer* layer = model->add_layer();
  layer->set_id(static_cast<uint32_t>(model->layer_size()) - 1);
  layer->set_path(path);
  layer->set_type("torch::nn::LinearImpl");
  v1::Parameter* parameter = model->add_parameter();
  parameter->set_id(layer->id());
  parameter->set_name(path + ".weight");
  parameter->set_layer(layer->id());
  parameter->set_role("weight");
  parameter->set_element_count(static_cast<uint64_t>(rows * columns));
  parameter->add_shape(rows);
  parameter->add_shape(columns);
  layer->add_parameter(parameter->id());
}

v1::StatisticRegistry registry() {
  v1::StatisticRegistry result;
  const auto add = [&](const char* name, v1::Scope scope) {
    v1::StatisticDefinition* definition = result.add_statistic();
    definition->set_id(static_cast<uint32_t>(result.statistic_size()) - 1);
    definition->set_name(name);
    definition->set_unit("1");
    definition->set_definition("Synthetic.");
    definition->add_scope(scope);
  };
  for (const char* name : kOfRuns) add(name, v1::SCOPE_RUN);
  for (const char* name : kOfLayers) add(name, v1::SCOPE_LAYER);
  return result;
}

}  // namespace

void write_sweep_trace(const std::string& directory, const SweepTrace& sweep) {
  v1::RunDescription run;
  run.set_run_id(sweep.name + "-" + std::to_string(sweep.seed));
  run.set_run_name(sweep.name);
  run.set_optimizer("Adam");
  run.set_seed(sweep.seed);
  run.add_tags(std::string("parametrization=") + (sweep.stable ? "mup" : "standard"));
  run.add_command_line("trainer");
  run.add_command_line("--out");
  run.add_command_line("runs/" + sweep.name);
  (*run.mutable_versions())["tycho"] = "0.1.0";
  v1::ModelDescription model;
  add_layer("layers.0", sweep.width, 32, &model);
  add_layer("layers.1", sweep.width, sweep.width, &model);
  add_layer("layers.2", 10, sweep.width, &model);
  if (!sweep.extra_layer.empty()) add_layer(sweep.extra_layer, 10, 10, &model);
  trace::RunWriterOptions options;
  options.directory = sweep.seal ? directory : directory + ".open";
  auto writer = trace::RunWriter::open(options, run, model, registry());
  if (!writer.ok()) throw std::runtime_error(writer.status().message());
  v1::OptimizerSettings settings;
  settings.set_optimizer("Adam");
  v1::ParameterGroup* group = settings.add_group();
  group->set_learning_rate(sweep.learning_rate);
  group->set_beta1(0.9);
  group->set_beta2(0.999);
  group->set_epsilon(1e-8);
  for (const v1::Parameter& parameter : model.parameter()) group->add_parameter(parameter.id());
  writer.value()->write(settings, 1000);

  std::mt19937 generator(static_cast<uint32_t>(131 * sweep.seed + 7 * sweep.width) +
                         static_cast<uint32_t>(sweep.batch_size));
  std::normal_distribution<double> normal;
  // What a seed does to a layer stays for the run.
  double seed_effect[4];
  for (double& effect : seed_effect) effect = 0.03 * normal(generator);
  const double cost = 1 + sweep.critical_batch / sweep.batch_size;
  const double floor = 0.4 + 0.5 * std::pow(sweep.width, -0.3);
  const auto layers = static_cast<size_t>(model.layer_size());
  for (int64_t step = 0; step < sweep.steps; ++step) {
    const double progress = (static_cast<double>(step) + 1) / cost;
    const double grown = std::sqrt(1 + 0.05 * static_cast<double>(step));
    v1::Record record;
    record.set_step(step);
    const auto put = [&](uint32_t statistic, double value) {
      v1::Column* column = record.add_column();
      column->set_statistic(statistic);
      column->set_scope(v1::SCOPE_RUN);
      column->add_value(value);
    };
    double loss = (floor + 2 * std::pow(1 + progress / 20, -0.6)) * (1 + 0.02 * normal(generator));
    if (sweep.first_bad_step >= 0 && step >= sweep.first_bad_step) loss = std::nan("");
    put(0, loss);
    put(1, sweep.batch_size);
    put(2, sweep.learning_rate);
    if (sweep.with_features && (step < 10 || step % sweep.layers_every == 0)) {
      const double power = sweep.stable ? 0 : 1;
      const auto scaled = [&](size_t layer, double value) {
        const double width = std::pow(sweep.width / 128.0, layer == 0 ? 0 : power);
        return value * width * std::exp(seed_effect[layer % 4]) * (1 + 0.01 * normal(generator));
      };
      put(3, scaled(2, 0.05 * grown));
      put(4, scaled(1, 20 + 5 * grown));
      put(5, 3.8 / sweep.learning_rate);
      const double base[] = {1, 0.06, 0.05, 0.03, 0.02, 0.4};
      for (uint32_t s = 0; s < 6; ++s) {
        v1::Column* column = record.add_column();
        column->set_statistic(6 + s);
        column->set_scope(v1::SCOPE_LAYER);
        for (size_t layer = 0; layer < layers; ++layer) {
          if (s == 3 && layer == 0) continue;  // a constant input passes nothing on
          const bool grows = s == 1 || s == 2 || s == 3;
          const double value = base[s] * (grows ? grown : 1) / (s == 5 ? grown : 1);
          column->add_entity(static_cast<uint32_t>(layer));
          column->add_value(s == 0 || s == 5 ? value * std::exp(seed_effect[layer % 4])
                                             : scaled(layer, value));
        }
      }
    }
    writer.value()->write("sweep", record, 1000000 * (step + 1));
  }
  if (!sweep.seal) {
    // As the files are when the process dies, before its writer closes them.
    if (!writer.value()->flush().ok()) throw std::runtime_error("cannot flush " + directory);
    std::filesystem::copy(options.directory, directory, std::filesystem::copy_options::recursive);
  }
  if (!writer.value()->close().ok()) throw std::runtime_error("cannot close " + directory);
  if (!sweep.seal) std::filesystem::remove_all(options.directory);
}

}  // namespace tycho::testing
