#pragma once

#include <ATen/Context.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "features/probe_pass.h"
#include "model_info.h"
#include "tycho/probe_loss.h"

namespace tycho {

/// A model with its probe loss, and feature passes over it as a session makes them.
struct ProbedModel {
  explicit ProbedModel(torch::nn::Module& module, ProbeLoss probe_loss, int64_t dim = 0)
      : model(module),
        optimizer(module.parameters(), 0.1),
        facts(describe(module, optimizer)),
        state(module),
        loss(std::move(probe_loss)),
        batch_dim(dim) {
    for (const ParameterInfo& parameter : facts.info.parameters) {
      parameters.push_back({parameter.tensor, parameter.id});
    }
  }

  struct Made {
    SavedState saved;
    ProbePass pass;
    Made(ProbedModel& of, const Needs& needs)
        : saved(of.state, of.model.parameters()),
          pass(of.loss, saved, of.facts.info, of.parameters, of.batch_dim, needs, &of.memory) {}
    ~Made() { saved.restore(); }
    ProbePass* operator->() { return &pass; }
  };
  std::unique_ptr<Made> pass(const Needs& needs) { return std::make_unique<Made>(*this, needs); }
  std::unique_ptr<Made> pass(bool gradients = false) {
    Needs needs;
    needs.probe_features = true;
    needs.probe_feature_gradients = gradients;
    return pass(needs);
  }

  uint32_t layer(const std::string& path) const {
    for (const LayerInfo& each : facts.info.layers) {
      if (each.path == path) return each.id;
    }
    return LayerUse::kNone;
  }
  /// The uses of a layer in a pass.
  std::vector<LayerUse> uses_of(FeaturePass& of, const std::string& path) const {
    std::vector<LayerUse> found;
    for (const LayerUse& use : of.uses()) {
      if (use.layer == layer(path)) found.push_back(use);
    }
    return found;
  }
  at::Tensor weight(const LayerUse& use) const { return facts.info.parameters[use.weight].tensor; }
  at::Tensor bias(const LayerUse& use) const {
    return use.bias == LayerUse::kNone ? at::Tensor() : facts.info.parameters[use.bias].tensor;
  }

  /// All that an evaluation could change.
  std::vector<at::Tensor> everything() const {
    std::vector<at::Tensor> all = {at::globalContext().defaultGenerator(at::kCPU).get_state()};
    for (const auto& parameter : model.parameters()) {
      all.push_back(parameter.detach().clone());
      all.push_back(parameter.grad().defined() ? parameter.grad().clone() : torch::zeros({}));
    }
    for (const auto& buffer : model.buffers()) all.push_back(buffer.clone());
    for (const auto& module : model.modules()) {
      all.push_back(torch::tensor(static_cast<int64_t>(module->is_training())));
    }
    return all;
  }

  torch::nn::Module& model;
  torch::optim::SGD optimizer;
  ModelFacts facts;
  ModelState state;
  ProbeLoss loss;
  int64_t batch_dim;
  ProbePassMemory memory;
  std::vector<ProbeLossSurface::Parameter> parameters;
};

inline ProbeLoss probe_loss_of(std::function<at::Tensor()> output,
                               std::function<at::Tensor(const at::Tensor&)> loss) {
  ProbeLoss result;
  result.output = [output = std::move(output)](int64_t) { return output(); };
  result.loss = [loss = std::move(loss)](const at::Tensor& z, int64_t) { return loss(z); };
  return result;
}

}  // namespace tycho
