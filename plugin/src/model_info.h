#pragma once

#include <torch/nn/module.h>
#include <torch/optim.h>
#include <torch/script.h>

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

ModelFacts describe(torch::nn::Module& model, torch::optim::Optimizer& optimizer);
ModelFacts describe(torch::jit::Module& model, torch::optim::Optimizer& optimizer);

/// Leaves out the layers that `include` and `exclude` do not select. OptionError where a pattern
/// matches no layer or none is left.
void select_layers(const SessionOptions& options, ModelFacts* facts);

}  // namespace tycho
