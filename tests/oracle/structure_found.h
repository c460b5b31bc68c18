#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "plugin/src/model_info.h"
#include "plugin/src/observer.h"
#include "probes/src/built_in.h"

/// What is found about the structure of a model, and plain checks of it: transform the parameters
/// of a symmetry group, and the loss must not change; identities of gradients hold to rounding.
namespace tycho::structure_found {

namespace nn = torch::nn;
using torch::Tensor;

using Loss = std::function<Tensor()>;

struct Found {
  ModelFacts facts;
  StepObservation step;
  std::vector<std::string> kinds() const {
    std::vector<std::string> result;
    for (const SymmetryGroup& group : step.symmetries) result.push_back(group.kind);
    return result;
  }
  std::vector<std::string> labels(const std::string& kind) const {
    std::vector<std::string> result;
    for (const auto& group : step.structure->symmetry_group()) {
      if (group.kind() == kind) result.push_back(group.label());
    }
    return result;
  }
};

inline Needs structure_needs() {
  Needs needs;
  needs.gradients = needs.symmetries = true;
  return needs;
}

// Numbers that leave no accidental symmetry: biases and gains are not zero and one.
inline void randomise(nn::Module& model) {
  torch::NoGradGuard no_grad;
  for (Tensor& parameter : model.parameters()) {
    parameter.add_(torch::rand_like(parameter), 0.3);
  }
}

inline Found trace(nn::Module& model, const Loss& loss, int microbatches = 1) {
  torch::optim::SGD optimizer(model.parameters(), 0.1);
  Found found{describe(model, optimizer), {}};
  Observer observer(found.facts.info, {});
  model.zero_grad();
  observer.install(structure_needs(), 1, 0);
  for (int i = 0; i < microbatches; ++i) loss().backward();
  found.step = observer.uninstall(0);
  return found;
}

inline Tensor member_rows(const Found& found, const SymmetryMember& member) {
  return found.facts.info.parameters[member.parameter].tensor.detach().narrow(0, member.begin,
                                                                              member.count);
}

// A copy with the channels of the member transformed; scaled by `factors`, or mixed by `matrix` in
// each block, or shifted by one number for all channels.
inline void transform(const Found& found, const SymmetryGroup& group, const SymmetryMember& member,
                      const Tensor& factors, const Tensor& matrix) {
  Tensor rows = member_rows(found, member);
  std::vector<int64_t> order = member.axes;
  for (int64_t i = 0; i < static_cast<int64_t>(member.view.size()); ++i) {
    if (std::find(order.begin(), order.end(), i) == order.end()) order.push_back(i);
  }
  const Tensor ordered = rows.reshape(member.view).permute(order);
  Tensor flat = ordered.reshape({group.channels, -1});
  if (group.kind == "translation") {
    flat = flat + torch::rand({1, flat.size(1)}, flat.options());
  } else if (matrix.defined()) {
    const Tensor blocks = flat.reshape({-1, group.block, flat.size(1)});
    // +: A W; -: A^{-T} W, looked at from the channel's side.
    const Tensor by = member.sign > 0 ? matrix : torch::inverse(matrix).transpose(-1, -2);
    flat = torch::matmul(by, blocks).reshape(flat.sizes());
  } else {
    flat = member.sign > 0 ? flat * factors : flat / factors;
  }
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  rows.copy_(flat.reshape(ordered.sizes()).permute(inverse).reshape(rows.sizes()));
}

// The loss does not change under each group's own transformation.
inline void expect_invariant(nn::Module& model, const Loss& loss, double tolerance = 1e-9) {
  const Found found = trace(model, loss);
  torch::NoGradGuard no_grad;
  for (const SymmetryGroup& group : found.step.symmetries) {
    SCOPED_TRACE(group.kind + " " + found.facts.info.parameters[group.members[0].parameter].name);
    const double before = loss().item<double>();
    std::vector<Tensor> saved;
    for (const Tensor& parameter : model.parameters()) saved.push_back(parameter.clone());
    const auto options = torch::dtype(torch::kDouble);
    Tensor factors = torch::rand({group.channels, 1}, options) + 0.5;
    if (group.uniform) factors = factors[0].expand({group.channels, 1});
    Tensor matrix;
    if (group.block > 1 && group.kind != "translation") {
      matrix =
          torch::eye(group.block, options) +
          0.2 * torch::randn({group.channels / group.block, group.block, group.block}, options);
    }
    for (const SymmetryMember& member : group.members)
      transform(found, group, member, factors, matrix);
    EXPECT_NEAR(loss().item<double>(), before, tolerance * std::fabs(before));
    for (size_t i = 0; i < saved.size(); ++i) model.parameters()[i].copy_(saved[i]);
    // And it is not that the loss depends on nothing: one member alone changes it (but for a
    // bias before BatchNorm).
    if (group.kind == "scale" || group.kind == "translation") continue;
    transform(found, group, group.members[0], factors, matrix);
    EXPECT_GT(std::fabs(loss().item<double>() - before), 1e-6 * std::fabs(before));
    for (size_t i = 0; i < saved.size(); ++i) model.parameters()[i].copy_(saved[i]);
  }
}

// What the symmetry probe records after a step of plain SGD with decay.
struct Recorded : Recorder {
  std::map<std::string, std::map<uint32_t, double>> values;
  void run(const std::string&, double, double) override {}
  void layer(const std::string&, uint32_t, double, double) override {}
  void parameter(const std::string& statistic, uint32_t id, double value, double) override {
    values[statistic][id] = value;
  }
  void index(const std::string&, uint32_t, double, double) override {}
  void event(v1::Event::Kind, const std::string&, const std::string&, v1::Scope,
             uint32_t) override {}
};

struct Numbers : Transfer, Arrived {
  std::vector<Tensor> sent;
  size_t send(const at::Tensor& numbers) override {
    sent.push_back(numbers.to(at::kDouble).contiguous());
    return sent.size() - 1;
  }
  const double* data(size_t slot) const override { return sent[slot].data_ptr<double>(); }
  size_t size(size_t slot) const override { return static_cast<size_t>(sent[slot].numel()); }
};

inline Recorded measure(
    nn::Module& model, const Loss& loss, int microbatches = 1,
    const std::function<void(StepObservation*)>& tamper = [](StepObservation*) {}) {
  torch::optim::SGD optimizer(model.parameters(),
                              torch::optim::SGDOptions(0.05).weight_decay(0.01));
  Found found = trace(model, loss, microbatches);
  std::vector<Tensor> before;
  for (ParameterObservation& seen : found.step.parameters) {
    const size_t id = before.size();
    before.push_back(found.facts.info.parameters[id].tensor.detach().clone());
    seen.previous_weight = before.back();
    seen.update_known = true;
  }
  tamper(&found.step);
  optimizer.step();
  v1::OptimizerSettings settings;
  settings.set_optimizer("SGD");
  auto* group = settings.add_group();
  group->set_learning_rate(0.05);
  group->set_weight_decay(0.01);
  for (uint32_t id = 0; id < before.size(); ++id) group->add_parameter(id);
  StepView view;
  view.model = &found.facts.info;
  view.parameters = &found.step.parameters;
  view.symmetries = &found.step.symmetries;
  view.optimizer = &settings;
  auto probe = make_symmetry_probe();
  probe->setup(found.facts.info);
  Numbers numbers;
  Recorded recorded;
  {
    torch::NoGradGuard no_grad;
    probe->observe(view, numbers)(numbers, recorded);
  }
  return recorded;
}

inline void expect_identities(nn::Module& model, const Loss& loss, int microbatches = 1) {
  const Recorded recorded = measure(model, loss, microbatches);
  ASSERT_THAT(recorded.values, ::testing::Contains(::testing::Key("symmetry_residual")));
  ASSERT_THAT(recorded.values, ::testing::Contains(::testing::Key("conservation_error")));
  for (const auto& [statistic, values] : recorded.values) {
    for (const auto& [id, value] : values) EXPECT_LT(value, 1e-10) << statistic << " " << id;
  }
}

}  // namespace tycho::structure_found
