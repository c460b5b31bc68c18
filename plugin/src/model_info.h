#pragma once

#include <torch/nn/module.h>
#include <torch/optim.h>
#include <torch/script.h>

#include <string>
#include <utility>
#include <vector>

#include "optimizer_settings.h"
#include "tycho/probe.h"
#include "tycho/session_options.h"

namespace tycho {

/// The model as the session sees it: each trainable tensor once, however often it is registered.
struct ModelFacts {
  ModelInfo info;
  v1::ModelDescription description;
  ParameterIds ids;
};

/// Parameter groups count through all optimizers.
ModelFacts describe(torch::nn::Module& model, const Optimizers& optimizers);
ModelFacts describe(torch::jit::Module& model, const Optimizers& optimizers);
/// Tensors without a module: each is a layer of its own.
ModelFacts describe(const std::vector<std::pair<std::string, at::Tensor>>& named,
                    const Optimizers& optimizers);

/// Leaves out the layers that `include` and `exclude` do not select. OptionError where a pattern
/// matches no layer or none is left.
void select_layers(const SessionOptions& options, ModelFacts* facts);

}  // namespace tycho
