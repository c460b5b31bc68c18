#pragma once

#include <gtest/gtest.h>
#include <tycho/trace/run_reader.h>

#include <limits>
#include <map>
#include <string>
#include <vector>

namespace tycho {

/// Everything a trace says, by statistic, scope and entity name, then by step.
class RunContents : public trace::MessageHandler {
 public:
  explicit RunContents(const std::string& directory) {
    auto opened = trace::RunReader::open(directory);
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    if (!opened.ok()) return;
    const Status status = opened.value()->read(*this);
    EXPECT_TRUE(status.ok()) << status.message();
    segments = opened.value()->segments().size();
  }

  bool on_segment(const trace::SegmentInfo&, const v1::RunDescription& description,
                  const v1::ModelDescription& model_description,
                  const v1::StatisticRegistry& registry) override {
    run = description;
    model = model_description;
    for (const auto& definition : registry.statistic()) names[definition.id()] = definition.name();
    return true;
  }
  bool on_record(const std::string&, const v1::Record& record, int64_t) override {
    for (const v1::Column& column : record.column()) {
      for (int i = 0; i < column.value_size(); ++i) {
        std::string key = names.at(column.statistic());
        if (column.scope() == v1::SCOPE_LAYER) {
          key += "@" + model.layer(static_cast<int>(column.entity(i))).path();
        } else if (column.scope() == v1::SCOPE_PARAMETER) {
          key += "#" + model.parameter(static_cast<int>(column.entity(i))).name();
        } else if (column.scope() == v1::SCOPE_INDEX) {
          key += "[" + std::to_string(column.entity(i)) + "]";
        }
        values[key][record.step()] = column.value(i);
        if (i < column.standard_error_size()) {
          standard_errors[key][record.step()] = column.standard_error(i);
        }
      }
    }
    return true;
  }
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t) override {
    optimizer.push_back(settings);
    return true;
  }
  bool on_event(const v1::Event& event, int64_t) override {
    events[event.code()] = event;
    return true;
  }
  bool on_health(const v1::Health& message, int64_t) override {
    health = message;
    return true;
  }
  bool on_finding(const v1::Finding& finding, int64_t) override {
    findings.push_back(finding);
    return true;
  }

  double at(const std::string& key, int64_t step) const {
    const auto series = values.find(key);
    if (series == values.end() || series->second.count(step) == 0) {
      ADD_FAILURE() << key << " is not recorded at step " << step;
      return std::numeric_limits<double>::quiet_NaN();
    }
    return series->second.at(step);
  }
  bool has(const std::string& key) const { return values.count(key) > 0; }

  v1::RunDescription run;
  v1::ModelDescription model;
  std::map<uint32_t, std::string> names;
  std::map<std::string, std::map<int64_t, double>> values;
  std::map<std::string, std::map<int64_t, double>> standard_errors;
  std::vector<v1::OptimizerSettings> optimizer;
  std::vector<v1::Finding> findings;
  std::map<std::string, v1::Event> events;
  v1::Health health;
  size_t segments = 0;
};

}  // namespace tycho
