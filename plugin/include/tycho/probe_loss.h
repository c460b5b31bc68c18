#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace at {
class Tensor;
}

namespace tycho {

/// A loss on data that stay the same, for statistics of the loss as a function of the parameters:
///   L = sum over chunks k of weights[k] * loss(output(k), k).
/// Chunks are evaluated one after the other, so that data need not fit in memory at once; with
/// losses that are means over n_k of n examples, weights[k] = n_k / n.
///
/// Every evaluation begins with the same state of the random generators and of the model's buffers,
/// which is restored afterwards. Dropout is then one fixed mask; to switch it off, call eval() on
/// the model inside: training flags are restored, too.
struct ProbeLoss {
  /// The network's output on chunk k. Optional: without it, `loss` receives an undefined tensor and
  /// evaluates everything, and Gauss-Newton products are not available.
  std::function<at::Tensor(int64_t chunk)> output;
  /// The loss of chunk k, a scalar.
  std::function<at::Tensor(const at::Tensor& output, int64_t chunk)> loss;
  std::vector<double> weights = {1.0};
  /// Total number of examples in all chunks, in the sense of Session::step; 0: not given. Needed by
  /// statistics that relate the loss to gradients of single examples.
  int64_t examples = 0;
  /// With a single chunk, keeps the graph of the gradient from one Hessian-vector product to the
  /// next: products take two thirds of the time, and a third more peak memory
  /// (docs/performance.md).
  bool keep_graph = false;
  /// The classes of chunk k's examples, int64 [n]. Optional: unlocks statistics that need classes,
  /// such as neural collapse.
  std::function<at::Tensor(int64_t chunk)> labels;
};

}  // namespace tycho
