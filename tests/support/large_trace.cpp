#include "tests/support/large_trace.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "tests/support/trace_samples.h"
#include "tycho/trace/run_writer.h"

namespace tycho::testing {
namespace {

constexpr int kWidth = 96;

struct Kind {
  const char* name;
  const char* type;
  std::vector<int64_t> shape;
};
const std::vector<Kind>& kinds() {
  static const std::vector<Kind> result = {
      {"norm1", "torch::nn::LayerNormImpl", {kWidth}},
      {"attention.qkv", "torch::nn::LinearImpl", {3 * kWidth, kWidth}},
      {"attention.out", "torch::nn::LinearImpl", {kWidth, kWidth}},
      {"norm2", "torch::nn::LayerNormImpl", {kWidth}},
      {"mlp.0", "torch::nn::LinearImpl", {4 * kWidth, kWidth}},
      {"mlp.2", "torch::nn::LinearImpl", {kWidth, 4 * kWidth}}};
  return result;
}

enum class Every { kStep, kNoise, kSpectrum };
struct Statistic {
  const char* name;
  const char* unit;
  bool run, layer, parameter;
  Every every;
};
constexpr Statistic kStatistics[] = {
    {"loss", "1", true, false, false, Every::kStep},
    {"batch_size", "examples", true, false, false, Every::kStep},
    {"learning_rate", "1", true, false, false, Every::kStep},
    {"step_seconds", "s", true, false, false, Every::kStep},
    {"weight_norm_sq", "1", true, true, true, Every::kStep},
    {"grad_norm_sq", "1", true, true, true, Every::kStep},
    {"update_norm_sq", "1", true, true, true, Every::kStep},
    {"weight_dot_grad", "1", true, true, true, Every::kStep},
    {"weight_dot_update", "1", true, true, true, Every::kStep},
    {"grad_dot_update", "1", true, true, true, Every::kStep},
    {"angular_update", "rad", true, true, true, Every::kStep},
    {"grad_non_finite", "entries", true, false, true, Every::kStep},
    {"weight_non_finite", "entries", true, false, true, Every::kStep},
    {"activation_mean", "1", false, true, false, Every::kStep},
    {"activation_rms", "1", false, true, false, Every::kStep},
    {"activation_grad_rms", "1", false, true, false, Every::kStep},
    {"dead_fraction", "1", false, true, false, Every::kStep},
    {"adam_update_rms", "1", false, true, true, Every::kStep},
    {"epsilon_floor_share", "1", false, true, true, Every::kStep},
    {"per_example_grad_norm_sq", "1", true, true, true, Every::kNoise},
    {"grad_noise_trace", "1", true, true, true, Every::kNoise},
    {"grad_signal_sq", "1", true, true, true, Every::kNoise},
    {"noise_scale", "examples", true, true, true, Every::kNoise},
    {"weight_spectral_norm", "1", false, true, false, Every::kSpectrum},
    {"update_spectral_norm", "1", false, true, false, Every::kSpectrum},
    {"change_spectral_norm", "1", false, true, false, Every::kSpectrum},
    {"stable_rank", "1", false, true, false, Every::kSpectrum},
};

v1::StatisticRegistry registry() {
  v1::StatisticRegistry result;
  for (const Statistic& statistic : kStatistics) {
    v1::StatisticDefinition* definition = result.add_statistic();
    definition->set_id(static_cast<uint32_t>(result.statistic_size()) - 1);
    definition->set_name(statistic.name);
    definition->set_unit(statistic.unit);
    definition->set_probe("scalars");
    definition->set_definition("As a run of that name has it.");
    if (statistic.run) definition->add_scope(v1::SCOPE_RUN);
    if (statistic.layer) definition->add_scope(v1::SCOPE_LAYER);
    if (statistic.parameter) definition->add_scope(v1::SCOPE_PARAMETER);
  }
  return result;
}

// Numerical Recipes' generator: fast, and the same everywhere.
struct Noise {
  uint32_t state = 1;
  double operator()() {
    state = 1664525u * state + 1013904223u;
    return static_cast<double>(state) / 4294967296.0 - 0.5;
  }
};

}  // namespace

v1::ModelDescription large_model(int layers) {
  v1::ModelDescription model;
  for (int i = 0; i < layers; ++i) {
    const Kind& kind = kinds()[static_cast<size_t>(i) % kinds().size()];
    v1::Layer* layer = model.add_layer();
    layer->set_id(static_cast<uint32_t>(i));
    layer->set_path("blocks." + std::to_string(i / static_cast<int>(kinds().size())) + "." +
                    kind.name);
    layer->set_type(kind.type);
    for (const char* role : {"weight", "bias"}) {
      v1::Parameter* parameter = model.add_parameter();
      parameter->set_id(static_cast<uint32_t>(model.parameter_size()) - 1);
      parameter->set_name(layer->path() + "." + role);
      parameter->set_role(role);
      parameter->set_layer(layer->id());
      parameter->set_dtype("float");
      parameter->set_requires_grad(true);
      uint64_t elements = 1;
      for (const int64_t extent : kind.shape) {
        if (role[0] == 'b' && parameter->shape_size() > 0) break;
        parameter->add_shape(extent);
        elements *= static_cast<uint64_t>(extent);
      }
      parameter->set_element_count(elements);
      layer->add_parameter(parameter->id());
    }
  }
  return model;
}

void write_large_run(const std::string& directory, const LargeTrace& what) {
  const v1::ModelDescription model = large_model(what.layers);
  v1::RunDescription run = sample_run("large");
  run.set_run_name("large");
  run.set_optimizer("AdamW");
  trace::RunWriterOptions options;
  options.directory = directory;
  auto opened = trace::RunWriter::open(options, run, model, registry());
  if (!opened.ok()) throw std::runtime_error(opened.status().message());
  trace::RunWriter& writer = *opened.value();
  v1::OptimizerSettings settings;
  settings.set_optimizer("AdamW");
  v1::ParameterGroup* group = settings.add_group();
  group->set_learning_rate(1e-3);
  group->set_beta1(0.9);
  group->set_beta2(0.999);
  group->set_epsilon(1e-8);
  for (int i = 0; i < model.parameter_size(); ++i) group->add_parameter(static_cast<uint32_t>(i));
  writer.write(settings, 1000);
  Noise noise;
  for (int64_t step = 0; step < what.steps; ++step) {
    v1::Record record;
    record.set_step(step);
    const double along = static_cast<double>(step) / static_cast<double>(what.steps);
    uint32_t id = 0;
    for (const Statistic& statistic : kStatistics) {
      const uint32_t number = id++;
      if (statistic.every == Every::kNoise && step % what.noise_every != 0) continue;
      if (statistic.every == Every::kSpectrum && step % what.spectrum_every != 0) continue;
      const std::string name = statistic.name;
      const bool counts = name.find("non_finite") != std::string::npos;
      const auto add = [&](v1::Scope scope, int entities) {
        v1::Column* column = record.add_column();
        column->set_statistic(number);
        column->set_scope(scope);
        column->mutable_value()->Reserve(entities);
        column->mutable_entity()->Reserve(entities);
        for (int i = 0; i < entities; ++i) {
          double value =
              counts ? 0 : (1 + i % 7 + number) * (1.0 / (1 + 5 * along)) * (1 + 0.2 * noise());
          if (name == "learning_rate") value = 1e-3;
          if (name == "batch_size") value = 64;
          if (name == "epsilon_floor_share") value = 0.01;
          if (name == "dead_fraction") value = 0.05 * (1 + 0.2 * noise());
          if (scope == v1::SCOPE_LAYER && i == 22 && name == "grad_norm_sq" &&
              step == what.steps / 3)
            value *= 1000;
          if (i == 35 && name == "activation_rms" && along > 0.5)
            value = std::numeric_limits<double>::infinity();
          if (scope != v1::SCOPE_RUN) column->add_entity(static_cast<uint32_t>(i));
          column->add_value(value);
        }
      };
      if (statistic.run) add(v1::SCOPE_RUN, 1);
      if (statistic.layer) add(v1::SCOPE_LAYER, model.layer_size());
      if (statistic.parameter) add(v1::SCOPE_PARAMETER, model.parameter_size());
    }
    writer.write("scalars", record, 1000000000 + step * 100000000);
  }
  if (const Status status = writer.close(); !status.ok())
    throw std::runtime_error(status.message());
}

}  // namespace tycho::testing
