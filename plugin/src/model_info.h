#pragma once

#include <torch/nn/module.h>
#include <torch/optim.h>
#include <torch/script.h>

#include <utility>
#include <vector>

#include "optimizer_settings.h"
#include "tycho/probe.h"

namespace tycho {

/// The model as the session sees it: each trainable tensor once, however often it is registered.
struct ModelFacts {
  ModelInfo info;
  v1::ModelDescription description;
  ParameterIds ids;
};

ModelFacts describe(torch::nn::Module& model, torch::optim::Optimizer& optimizer);
ModelFacts describe(torch::jit::Module& model, torch::optim::Optimizer& optimizer);

}  // namespace tycho
