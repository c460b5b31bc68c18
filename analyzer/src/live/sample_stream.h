#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "src/live/message_log.h"
#include "tycho/analyzer/live_judge.h"

namespace tycho::analyzer {

// Runs as messages, and what is said of them as text, for tests of the live judge.

/// Messages as a session sends them: settings and events of a step before its records, health now
/// and then.
class Stream {
 public:
  explicit Stream(int layers = 2) {
    run_.set_run_id("stream");
    run_.set_optimizer("SGD");
    for (int i = 0; i < layers; ++i) {
      v1::Layer* layer = model_.add_layer();
      layer->set_id(static_cast<uint32_t>(i));
      layer->set_path(std::to_string(i));
      layer->set_type("torch::nn::LinearImpl");
      v1::Parameter* parameter = model_.add_parameter();
      parameter->set_id(static_cast<uint32_t>(i));
      parameter->set_name(std::to_string(i) + ".weight");
      parameter->set_layer(static_cast<uint32_t>(i));
      parameter->set_role("weight");
      parameter->set_dtype("double");
      parameter->add_shape(4);
      parameter->add_shape(4);
      parameter->set_element_count(16);
      parameter->set_requires_grad(true);
      layer->add_parameter(parameter->id());
    }
    std::set<std::string> names = {"loss", "batch_size", "dead_fraction", "update_norm_sq"};
    for (const auto& law : make_laws()) {
      for (const std::string& name : law->description().statistics) names.insert(name);
    }
    for (const std::string& name : names) {
      v1::StatisticDefinition* definition = registry_.add_statistic();
      definition->set_id(static_cast<uint32_t>(registry_.statistic_size()));
      definition->set_name(name);
      definition->set_probe("probe");
    }
  }

  void open(trace::MessageHandler& to, bool resumed = false) {
    trace::SegmentInfo info;
    info.resumed = resumed;
    to.on_segment(info, run_, model_, registry_);
  }
  void settings(trace::MessageHandler& to, int64_t step, double learning_rate) {
    v1::OptimizerSettings settings;
    settings.set_step(step);
    settings.set_optimizer("SGD");
    v1::ParameterGroup* group = settings.add_group();
    group->set_learning_rate(learning_rate);
    for (const v1::Parameter& parameter : model_.parameter()) group->add_parameter(parameter.id());
    to.on_optimizer(settings, 0);
  }
  void event(trace::MessageHandler& to, int64_t step, v1::Event::Kind kind,
             const std::string& code) {
    v1::Event event;
    event.set_step(step);
    event.set_kind(kind);
    event.set_code(code);
    event.set_message(code + " happened");
    event.set_scope(v1::SCOPE_RUN);
    event.set_count(1);
    to.on_event(event, 0);
  }
  void health(trace::MessageHandler& to, int64_t step, uint64_t dropped = 0) {
    v1::Health health;
    health.set_step(step);
    health.set_steps_seen(static_cast<uint64_t>(step) + 1);
    health.set_messages_dropped(dropped);
    to.on_health(health, 0);
  }
  v1::Record record(int64_t step) const {
    v1::Record record;
    record.set_step(step);
    return record;
  }
  void put(v1::Record* record, const std::string& name, double value) const {
    put(record, name, v1::SCOPE_RUN, {value});
  }
  void put(v1::Record* record, const std::string& name, v1::Scope scope,
           const std::vector<double>& values) const {
    v1::Column* column = record->add_column();
    for (const v1::StatisticDefinition& definition : registry_.statistic()) {
      if (definition.name() == name) column->set_statistic(definition.id());
    }
    column->set_scope(scope);
    for (size_t i = 0; i < values.size(); ++i) {
      if (scope != v1::SCOPE_RUN) column->add_entity(static_cast<uint32_t>(i));
      column->add_value(values[i]);
    }
  }
  /// One step whose loss, and nothing else, is known.
  void loss(trace::MessageHandler& to, int64_t step, double loss) const {
    v1::Record all = record(step);
    put(&all, "loss", loss);
    to.on_record("probe", all, 0);
  }
  const v1::StatisticRegistry& registry() const { return registry_; }
  v1::RunDescription& run() { return run_; }

 private:
  v1::RunDescription run_;
  v1::ModelDescription model_;
  v1::StatisticRegistry registry_;
};

/// Every statistic that a law reads, at every scope, with what may stand in a trace in any order:
/// numbers that mean nothing together, so that verdicts are all there are and change often.
inline MessageLog random_run(uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  Stream stream(3);
  MessageLog log;
  stream.open(log);
  std::vector<double> level;
  std::vector<double> share;
  for (int i = 0; i < stream.registry().statistic_size(); ++i) {
    level.push_back(std::exp(2 * normal(random)));
    share.push_back(uniform(random) < 0.3 ? 0 : uniform(random));
  }
  const double noise = uniform(random) < 0.5 ? 0.02 : 0.5;
  int64_t step = 0;
  for (int i = 0; i < steps; ++i) {
    step += 1 + static_cast<int64_t>(4 * uniform(random));
    if (i == 0 || uniform(random) < 0.02) stream.settings(log, step, std::exp(normal(random)));
    if (uniform(random) < 0.05)
      stream.event(log, step, v1::Event::NOT_OBSERVED,
                   "code_" + std::to_string(static_cast<int>(8 * uniform(random))));
    if (i == 2 || uniform(random) < 0.01) {
      v1::ModelStructure structure;
      v1::LayerEdge* edge = structure.add_edge();
      edge->set_to(1);
      if (uniform(random) < 0.5) edge->add_via("aten::relu");
      log.on_structure(structure, 0);
    }
    for (int part = 0; part < 3; ++part) {
      v1::Record record = stream.record(step);
      for (int s = part; s < stream.registry().statistic_size(); s += 3) {
        const size_t at = static_cast<size_t>(s);
        if (uniform(random) > share[at]) continue;
        const std::string& name = stream.registry().statistic(s).name();
        const auto value = [&] {
          return uniform(random) < 0.002 ? std::nan("")
                                         : level[at] * std::exp(noise * normal(random));
        };
        stream.put(&record, name, value());
        stream.put(&record, name, v1::SCOPE_LAYER, {value(), value(), value()});
        stream.put(&record, name, v1::SCOPE_PARAMETER, {value(), value(), value()});
      }
      if (record.column_size() > 0) log.on_record("probe", record, 0);
    }
    if (uniform(random) < 0.1) stream.health(log, step, uniform(random) < 0.1 ? 3 : 0);
  }
  stream.event(log, step + 1, v1::Event::STOPPED, "session_closed");
  stream.health(log, step + 1);
  return log;
}

inline std::string text_of(const Finding& finding) {
  const auto number = [](double value) {
    char text[40];
    std::snprintf(text, sizeof(text), " %a", value);
    return std::string(text);
  };
  return finding.law + " " + finding.scope + " " + to_string(finding.verdict) +
         number(finding.measured) + number(finding.ci_low) + number(finding.ci_high) +
         number(finding.importance) + " " + std::to_string(finding.window_begin) + " " +
         finding.gate + " " + finding.advice;
}

inline std::vector<std::string> report_of(const MessageLog& log, size_t end) {
  Engine engine;
  log.replay(0, end, engine);
  engine.finish();
  std::vector<std::string> texts;
  for (const Finding& finding : engine.findings()) texts.push_back(text_of(finding));
  return texts;
}

inline std::vector<std::string> verdicts_of(const LiveJudge& judge) {
  std::vector<std::string> texts;
  for (const LiveFinding& finding : judge.findings()) {
    if (finding.kind == LiveFinding::Kind::kVerdict) texts.push_back(text_of(finding));
  }
  return texts;
}

inline std::vector<std::string> said_by(const MessageLog& log) {
  std::vector<std::string> lines;
  LiveJudge judge([&](const LiveFinding& finding) { lines.push_back(describe(finding)); });
  log.replay(0, log.size(), judge);
  judge.finish();
  return lines;
}

}  // namespace tycho::analyzer
