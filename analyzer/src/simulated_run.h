#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tycho/analyzer/engine.h"

namespace tycho::analyzer {

/// Builds a run in memory and feeds it to an engine, as a reader would. For tests.
class SimulatedRun {
 public:
  explicit SimulatedRun(Engine& engine) : engine_(engine) { run_.set_run_id("simulated"); }

  v1::RunDescription& run() { return run_; }
  v1::ModelDescription& model() { return model_; }
  v1::StatisticRegistry& registry() { return registry_; }

  uint32_t add_layer(const std::string& path, const std::string& type = "torch::nn::LinearImpl") {
    v1::Layer* layer = model_.add_layer();
    layer->set_id(static_cast<uint32_t>(model_.layer_size()) - 1);
    layer->set_path(path);
    layer->set_type(type);
    return layer->id();
  }

  uint32_t add_parameter(uint32_t layer, const std::string& role, const std::vector<int64_t>& shape,
                         const std::string& dtype = "float") {
    v1::Parameter* parameter = model_.add_parameter();
    parameter->set_id(static_cast<uint32_t>(model_.parameter_size()) - 1);
    parameter->set_name(model_.layer(static_cast<int>(layer)).path() + "." + role);
    parameter->set_layer(layer);
    parameter->set_role(role);
    parameter->set_dtype(dtype);
    parameter->set_requires_grad(true);
    uint64_t count = 1;
    for (const int64_t extent : shape) {
      parameter->add_shape(extent);
      count *= static_cast<uint64_t>(extent);
    }
    parameter->set_element_count(count);
    model_.mutable_layer(static_cast<int>(layer))->add_parameter(parameter->id());
    return parameter->id();
  }

  /// Returns the id of the statistic, defining it at first.
  uint32_t statistic(const std::string& name) {
    for (const v1::StatisticDefinition& known : registry_.statistic()) {
      if (known.name() == name) return known.id();
    }
    v1::StatisticDefinition* definition = registry_.add_statistic();
    definition->set_id(static_cast<uint32_t>(registry_.statistic_size()) - 1 + first_statistic_id_);
    definition->set_name(name);
    return definition->id();
  }
  void set_first_statistic_id(uint32_t id) { first_statistic_id_ = id; }

  /// Hands the descriptions to the engine. Call after layers, parameters and statistics are
  /// defined.
  void open(bool resumed = false) {
    trace::SegmentInfo info;
    info.resumed = resumed;
    engine_.on_segment(info, run_, model_, registry_);
  }

  void settings(int64_t step, const std::string& optimizer, const v1::ParameterGroup& group) {
    v1::OptimizerSettings settings;
    settings.set_step(step);
    settings.set_optimizer(optimizer);
    v1::ParameterGroup* added = settings.add_group();
    *added = group;
    if (added->parameter_size() == 0) {
      for (const v1::Parameter& parameter : model_.parameter())
        added->add_parameter(parameter.id());
    }
    engine_.on_optimizer(settings, 0);
  }

  /// Starts the record of a step; what was put before is sent.
  void step(int64_t step) {
    send();
    record_.set_step(step);
    pending_ = true;
  }

  void put(const std::string& name, double value) {
    v1::Column* column = record_.add_column();
    column->set_statistic(statistic(name));
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(value);
  }

  void put(const std::string& name, v1::Scope scope, const std::vector<double>& values) {
    v1::Column* column = record_.add_column();
    column->set_statistic(statistic(name));
    column->set_scope(scope);
    for (size_t i = 0; i < values.size(); ++i) {
      column->add_entity(static_cast<uint32_t>(i));
      column->add_value(values[i]);
    }
  }

  void send() {
    if (pending_) engine_.on_record("simulated", record_, 0);
    record_.Clear();
    pending_ = false;
  }

  void finish() {
    send();
    engine_.finish();
  }

 private:
  Engine& engine_;
  v1::RunDescription run_;
  v1::ModelDescription model_;
  v1::StatisticRegistry registry_;
  v1::Record record_;
  bool pending_ = false;
  uint32_t first_statistic_id_ = 0;
};

}  // namespace tycho::analyzer
