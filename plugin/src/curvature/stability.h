#pragma once

#include <torch/optim/optimizer.h>

#include "tycho/loss_surface.h"
#include "tycho/v1/record.pb.h"

namespace tycho {

/// Preconditioner and threshold of the optimizer as it stands after a step (theory T1.5), for the
/// parameters of `surface`. `parameters`: tensors, one for each of the surface's blocks.
/// `settings`: those that the step used.
///
/// With P as below the update is -eta P^-1 m, m the optimizer's average of gradients, and the edge
/// on a quadratic is where eta lambda_max(P^-1 (H + D)) is
///   SGD                           P = 1                                  2
///   SGD with momentum b           P = 1/(1-dampening)                    2 + 2b
///   Nesterov                      P = 1                                  (2 + 2b)/(1 + 2b)
///   RMSprop                       sqrt(v) + eps; centered: sqrt(v - m^2) + eps   2 + 2b
///   Adagrad                       (sqrt(sum) + eps)(1 + (t-1) decay)     2
///   Adam                          (1-b1^t)(sqrt(v/(1-b2^t)) + eps)       (2 + 2 b1)/(1 - b1)
///   AdamW                         the same                ((2 - eta lambda)(1 + b1))/(1 - b1)
/// with D the coupled weight decay (0 for AdamW). AMSGrad's v is its running maximum.
Stability stability_of(torch::optim::Optimizer& optimizer, const v1::OptimizerSettings& settings,
                       const LossSurface& surface, const std::vector<at::Tensor>& parameters);

}  // namespace tycho
