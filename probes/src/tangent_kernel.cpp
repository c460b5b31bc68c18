#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "feature_support.h"
#include "not_observed.h"

namespace tycho {
namespace {

constexpr int64_t kExamples = 64;

/// How far has the network left the linear regime of its first observation? The tangent kernel K_ij
/// = J_i J_j' of the first 64 examples of the probe batch (of its first chunk), J_i the gradient of
/// example i's output with respect to all observed parameters (RUN) or to a layer's own (LAYER).
/// Where an example has several outputs (classes, positions) J_i is that of their combination along
/// one random unit direction, the same for all steps. 0 is the first observation of the session, s
/// the one before:
///   kernel_distance  1 - <K_t, K_0> / (|K_t| |K_0|)
///   kernel_velocity  (1 - <K_t, K_s> / (|K_t| |K_s|)) / (t - s)
///   kernel_target_alignment  y'K y / (|K| |y|^2)
/// with y the targets along the same directions: classes (ProbeLoss::labels) as unit vectors minus
/// their mean 1/C, or else where a loss that is the same parabola in all outputs has its minimum;
/// absent where neither is given.
///   linearization_residual  |f_t - f_0 - J_0 (theta_t - theta_0)| / |f_t - f_0|
/// over all outputs of the first chunk, f_0 the output at theta_0 with today's buffers. J_0
/// (theta_t
/// - theta_0) by differentiating J_0'u in u, exact; where operators have no second derivative a
/// central difference, which is said.
///
/// Costs a forward and a backward pass of the chunk, products of pairs of examples (no gradient of
/// a single example), and for the residual about two gradients of the chunk. Parameters whose
/// kernel the products are seen not to give (batch normalisation over the probe batch, recurrent
/// networks) take one backward pass for each example.
class TangentKernelProbe : public Probe {
 public:
  std::string name() const override { return "tangent_kernel"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> both = {v1::SCOPE_RUN, v1::SCOPE_LAYER};
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        since_first_observation(define_statistic(
            "kernel_distance", "S(t, 0)", "1", both,
            "1 - <K_t, K_0>/(|K_t||K_0|) of the tangent kernel on the probe batch, 0 "
            "the first observation.",
            "Fort et al. 2020")),
        define_statistic("kernel_velocity", "S(t, s)/(t - s)", "1/step", both,
                         "1 - <K_t, K_s>/(|K_t||K_s|) of the tangent kernel on the probe batch, "
                         "s the previous observation, per step.",
                         "Fort et al. 2020"),
        define_statistic("kernel_trace", "tr K_t", "1", both,
                         "Trace of the tangent kernel on the probe batch: sum over its examples of "
                         "the squared norm of the output's gradient.",
                         "Jacot et al. 2018"),
        define_statistic("kernel_target_alignment", "y'Ky/(|K||y|^2)", "1", run,
                         "Alignment of the tangent kernel with the targets.",
                         "Cristianini et al. 2001"),
        since_first_observation(
            define_statistic("linearization_residual", "R_lin", "1", run,
                             "|f_t - f_0 - J_0 (theta_t - theta_0)|/|f_t - f_0| of the network's "
                             "output on the probe batch, 0 the first observation.",
                             "Chizat et al. 2019")),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = needs.probe_feature_gradients = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr || !pass->comparable()) return nullptr;
    // The same directions at every step.
    const TangentKernel now =
        pass->tangent_kernel(kExamples, at::detail::createCPUGenerator(step.seed + 0x7a9));
    if (!now.impossible.empty()) {
      return not_observed("tangent_kernel_not_observed",
                          "the tangent kernel is not observed: " + now.impossible);
    }
    const bool first = !begun_;
    begun_ = true;
    std::vector<Sent> sent;
    const auto send = [&](std::optional<uint32_t> layer, const at::Tensor& kernel) {
      if (!kernel.defined()) return;
      Kernels& kept = kernels_[layer];
      if (first) kept.first = kept.last = kernel;
      if (first) kept.last_step = step.step;
      Sent entry;
      entry.layer = layer;
      entry.compared = !first && kept.first.defined() && kept.first.sizes() == kernel.sizes();
      entry.steps = static_cast<double>(step.step - kept.last_step);
      const at::Tensor& zero = entry.compared ? kept.first : kernel;
      const at::Tensor& last = entry.compared ? kept.last : kernel;
      entry.slot = transfer.send(
          at::stack({kernel.trace(), distance(kernel, zero), distance(kernel, last)}));
      if (entry.compared) {
        kept.last = kernel;
        kept.last_step = step.step;
      }
      sent.push_back(entry);
    };
    send(std::nullopt, now.whole);
    for (uint32_t layer = 0; layer < now.layers.size(); ++layer) send(layer, now.layers[layer]);
    std::optional<size_t> alignment;
    if (now.whole.defined()) alignment = send_alignment(*pass, now, transfer);
    std::optional<size_t> residual;
    bool exact = true;
    if (first) {
      first_parameters_ = pass->parameters();
    } else {
      residual = send_residual(*pass, transfer, &exact);
    }
    return [sent = std::move(sent), why_not = now.why_not, products = now.products, alignment,
            residual, exact, first, now = step.step](const Arrived& arrived, Recorder& recorder) {
      if (first) say_reference(now, recorder);
      say(why_not, products, exact, recorder);
      for (const Sent& entry : sent) record(entry, arrived, recorder);
      const auto record_run = [&](const char* statistic, std::optional<size_t> slot) {
        if (!slot) return;
        // 0/0: nothing moved, or there are no targets to speak of.
        if (const double value = arrived.value(*slot); !std::isnan(value)) {
          recorder.run(statistic, value, Recorder::kUnknown);
        }
      };
      record_run("kernel_target_alignment", alignment);
      record_run("linearization_residual", residual);
    };
  }

 private:
  struct Kernels {
    at::Tensor first, last;
    int64_t last_step = 0;
  };
  struct Sent {
    std::optional<uint32_t> layer;
    size_t slot = 0;
    double steps = 0;
    bool compared = false;
  };

  /// 1 - cos: from the difference of the normalised matrices, which keeps its digits near 0.
  static at::Tensor distance(const at::Tensor& left, const at::Tensor& right) {
    return (left / left.norm() - right / right.norm()).square().sum() / 2;
  }

  static std::optional<size_t> send_alignment(FeaturePass& pass, const TangentKernel& kernel,
                                              Transfer& transfer) {
    at::Tensor targets;
    const at::Tensor labels = pass.labels(0);
    const at::Tensor& output = pass.outputs()[0];
    const int64_t n = kernel.examples;
    if (labels.defined() && output.dim() == 2 && labels.size(0) == output.size(0) && n > 0) {
      const int64_t classes = output.size(1);
      if (labels.min().item<int64_t>() >= 0 && labels.max().item<int64_t>() < classes) {
        targets = at::zeros({labels.size(0), classes}, at::kDouble)
                      .scatter_(1, labels.unsqueeze(1), 1)
                      .sub_(1.0 / static_cast<double>(classes))
                      .slice(0, 0, n);
      }
    }
    if (!targets.defined()) {
      targets = pass.targets(0);
      if (targets.defined()) targets = targets.slice(0, 0, n).to(at::kDouble);
    }
    if (!targets.defined()) return std::nullopt;
    const at::Tensor along =
        (targets.to(kernel.directions.device()) * kernel.directions.to(at::kDouble)).sum(1);
    const at::Tensor& k = kernel.whole;
    const at::Tensor y = along.to(k.device());
    return transfer.send(y.dot(at::mv(k, y)) / (k.norm() * y.dot(y)));
  }

  std::optional<size_t> send_residual(FeaturePass& pass, Transfer& transfer, bool* exact) {
    const FeaturePass::Line line = pass.line(0, first_parameters_);
    *exact = line.exact;
    const at::Tensor change = (pass.outputs()[0].reshape({-1}) - line.output).to(at::kDouble);
    return transfer.send((change - line.derivative.to(at::kDouble)).norm() / change.norm());
  }

  static void say(const std::vector<std::string>& why_not, bool products, bool exact,
                  Recorder& recorder) {
    for (uint32_t layer = 0; layer < why_not.size(); ++layer) {
      if (why_not[layer].empty()) continue;
      recorder.event(v1::Event::NOT_OBSERVED, "tangent_kernel_of_layer_not_observed",
                     "the tangent kernel of the layer, and with it that of the network, is not "
                     "observed: " +
                         why_not[layer],
                     v1::SCOPE_LAYER, layer);
    }
    if (!products) {
      recorder.event(v1::Event::METHOD, "tangent_kernel_by_gradients",
                     "the tangent kernel takes one backward pass for each example: products of "
                     "inputs and output gradients do not give that of every parameter",
                     v1::SCOPE_RUN, 0);
    }
    if (!exact) {
      recorder.event(v1::Event::METHOD, "linearization_by_differences",
                     "the network's derivative along its path is a central difference: an operator "
                     "has no second derivative",
                     v1::SCOPE_RUN, 0);
    }
  }

  static void record(const Sent& entry, const Arrived& arrived, Recorder& recorder) {
    const double* numbers = arrived.data(entry.slot);
    const auto record = [&](const char* statistic, double value) {
      if (entry.layer) {
        recorder.layer(statistic, *entry.layer, value, Recorder::kUnknown);
      } else {
        recorder.run(statistic, value, Recorder::kUnknown);
      }
    };
    record("kernel_trace", numbers[0]);
    // A kernel that is 0 is at no distance from another.
    if (!entry.compared || std::isnan(numbers[1])) return;
    record("kernel_distance", numbers[1]);
    if (entry.steps > 0 && !std::isnan(numbers[2])) {
      record("kernel_velocity", numbers[2] / entry.steps);
    }
  }

  bool begun_ = false;
  std::map<std::optional<uint32_t>, Kernels> kernels_;  // of each layer, and of the whole
  std::vector<at::Tensor> first_parameters_;
};

}  // namespace

std::unique_ptr<Probe> make_tangent_kernel_probe() {
  return std::make_unique<TangentKernelProbe>();
}

}  // namespace tycho
