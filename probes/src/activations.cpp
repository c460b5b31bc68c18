#include <ATen/ATen.h>

#include <cmath>
#include <optional>

#include "built_in.h"

namespace tycho {
namespace {

/// What layers put out, before the nonlinearity, and the gradients that come back (theory T1.10).
/// Per layer, over all elements of all its outputs in the step: activation_mean, activation_rms,
/// activation_grad_rms (as backward delivered it, divided by the loss scale). dead_fraction: share
/// of the units behind which a ReLU follows whose input to it was never above zero in the step;
/// with N examples a unit that is alive with probability p is called dead with probability (1 -
/// p)^N. Sums in float64 where the layer runs; one pass over each output, one over each gradient.
class ActivationsProbe : public Probe {
 public:
  std::string name() const override { return "activations"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_LAYER};
    return {
        define_statistic("activation_mean", "mean(h)", "1", scopes,
                         "Mean of the layer's output before the nonlinearity.", "theory T1.10"),
        define_statistic("activation_rms", "sqrt(q)", "1", scopes,
                         "sqrt(mean(h^2)) of the layer's output before the nonlinearity.",
                         "Poole et al. 2016"),
        define_statistic("activation_grad_rms", "RMS(dL/dh)", "1", scopes,
                         "sqrt(mean((dL/dh)^2)) of the loss gradient at the layer's output, as "
                         "backward delivered it.",
                         "Schoenholz et al. 2017"),
        define_statistic("dead_fraction", "P(max h <= 0)", "1", scopes,
                         "Share of the layer's units whose input to the following ReLU was "
                         "never above zero in the step.",
                         "theory T1.10"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.activations = true;
    needs.output_gradients = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    struct Sent {
      uint32_t layer;
      double elements;
      double gradient_elements;
      std::optional<size_t> sum, square_sum, gradient_square_sum, dead;
      double units;
    };
    std::vector<Sent> sent;
    const auto send = [&transfer](const at::Tensor& numbers) -> std::optional<size_t> {
      if (!numbers.defined()) return std::nullopt;
      return transfer.send(numbers);
    };
    for (size_t id = 0; id < step.layers->size(); ++id) {
      const LayerObservation& seen = (*step.layers)[id];
      Sent entry;
      entry.layer = static_cast<uint32_t>(id);
      entry.elements = static_cast<double>(seen.output_elements);
      entry.gradient_elements = static_cast<double>(seen.output_gradient_elements);
      entry.sum = send(seen.output_sum);
      entry.square_sum = send(seen.output_square_sum);
      entry.gradient_square_sum = send(seen.output_gradient_square_sum);
      entry.units = 0;
      if (seen.relu_input_max.defined() && seen.relu_input_max.numel() > 0) {
        entry.units = static_cast<double>(seen.relu_input_max.numel());
        entry.dead = send(seen.relu_input_max.le(0).sum().to(at::kDouble));
      }
      sent.push_back(entry);
    }
    return [sent = std::move(sent)](const Arrived& arrived, Recorder& recorder) {
      for (const Sent& entry : sent) {
        const auto record = [&](const char* statistic, double value) {
          recorder.layer(statistic, entry.layer, value, Recorder::kUnknown);
        };
        if (entry.sum && entry.elements > 0) {
          record("activation_mean", arrived.value(*entry.sum) / entry.elements);
          record("activation_rms", std::sqrt(arrived.value(*entry.square_sum) / entry.elements));
        }
        if (entry.gradient_square_sum && entry.gradient_elements > 0) {
          record("activation_grad_rms",
                 std::sqrt(arrived.value(*entry.gradient_square_sum) / entry.gradient_elements));
        }
        if (entry.dead) record("dead_fraction", arrived.value(*entry.dead) / entry.units);
      }
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_activations_probe() { return std::make_unique<ActivationsProbe>(); }

}  // namespace tycho
