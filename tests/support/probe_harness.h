#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/probed_model.h"
#include "tycho/probe.h"

namespace tycho {

/// What a probe recorded at one step: "statistic", "statistic@layer path", "statistic#parameter
/// name" or "statistic[position]".
struct Recorded : Recorder {
  explicit Recorded(ModelInfo info) : model(std::move(info)) {}
  void run(const std::string& statistic, double value, double) override {
    values[statistic] = value;
  }
  void layer(const std::string& statistic, uint32_t id, double value, double) override {
    values[statistic + "@" + model.layers[id].path] = value;
  }
  void parameter(const std::string& statistic, uint32_t id, double value, double) override {
    values[statistic + "#" + model.parameters[id].name] = value;
  }
  void index(const std::string& statistic, uint32_t position, double value, double) override {
    values[statistic + "[" + std::to_string(position) + "]"] = value;
  }
  void event(v1::Event::Kind, const std::string& code, const std::string& message, v1::Scope,
             uint32_t) override {
    events[code] = message;
  }

  bool has(const std::string& key) const { return values.count(key) > 0; }
  double at(const std::string& key) const {
    const auto found = values.find(key);
    if (found != values.end()) return found->second;
    ADD_FAILURE() << key << " is not recorded";
    return std::numeric_limits<double>::quiet_NaN();
  }

  ModelInfo model;
  std::map<std::string, double> values;
  std::map<std::string, std::string> events;
};

/// Numbers that arrive at once.
struct Immediate : Transfer, Arrived {
  size_t send(const at::Tensor& numbers) override {
    sent.push_back(numbers.detach().to(torch::kCPU, torch::kDouble).reshape({-1}).contiguous());
    return sent.size() - 1;
  }
  const double* data(size_t slot) const override { return sent.at(slot).data_ptr<double>(); }
  size_t size(size_t slot) const override { return static_cast<size_t>(sent.at(slot).numel()); }
  std::vector<at::Tensor> sent;
};

/// One observation of a probe of features, as a session makes it.
inline Recorded observe(Probe& probe, ProbedModel& probed, int64_t step,
                        const v1::OptimizerSettings* settings = nullptr) {
  Recorded recorded(probed.facts.info);
  probe.setup(probed.facts.info);
  const at::NoGradGuard no_grad;
  const auto made = probed.pass(probe.needs());
  StepView view;
  view.step = step;
  view.seed = 5;
  view.model = &probed.facts.info;
  view.optimizer = settings;
  view.features = &made->pass;
  Immediate numbers;
  const Probe::Finish finish = probe.observe(view, numbers);
  if (finish) finish(numbers, recorded);
  return recorded;
}

}  // namespace tycho
