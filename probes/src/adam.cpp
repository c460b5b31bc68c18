#include <ATen/ATen.h>

#include <cmath>
#include <tuple>

#include "built_in.h"

namespace tycho {
namespace {

/// Adam's update before the learning rate, per parameter (theory T1.9). With m^ = m / (1 - b1^t)
/// and v^ = v / (1 - b2^t): adam_update_rms = sqrt(mean (m^ / sqrt(v^))^2), epsilon left out and 0
/// / 0 counted as 0; epsilon_floor_share = share of the entries with sqrt(v^) < 10 epsilon, where
/// epsilon shapes the update and the law does not hold. Adam and AdamW only; several passes of ATen
/// over the moments in float64 on their device.
class AdamProbe : public Probe {
 public:
  std::string name() const override { return "adam"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    return {
        define_statistic(
            "adam_update_rms", "U", "1", scopes,
            "sqrt(mean((m^/sqrt(v^))^2)) over the entries, moments corrected for bias, without "
            "epsilon.",
            "theory T1.9"),
        define_statistic("epsilon_floor_share", "P(sqrt(v^) < 10 eps)", "1", scopes,
                         "Share of the entries with sqrt(v^) below ten epsilon.", "theory T1.9"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.adam_state = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    struct Sent {
      uint32_t parameter;
      size_t slot;
      double elements;
    };
    std::vector<Sent> sent;
    if (step.optimizer != nullptr) {
      for (const v1::ParameterGroup& group : step.optimizer->group()) {
        for (const uint32_t id : group.parameter()) {
          const ParameterObservation& seen = (*step.parameters)[id];
          if (!seen.adam_first_moment.defined() || seen.adam_step < 1) continue;
          sent.push_back({id, transfer.send(measure(seen, group)),
                          static_cast<double>(seen.adam_first_moment.numel())});
        }
      }
    }
    return [this, sent = std::move(sent)](const Arrived& arrived, Recorder& recorder) {
      struct Total {
        double squares = 0;
        double floored = 0;
        double elements = 0;
      };
      std::vector<Total> layers(model_.layers.size());
      for (const Sent& entry : sent) {
        const double* sums = arrived.data(entry.slot);
        if (entry.elements == 0) continue;
        recorder.parameter("adam_update_rms", entry.parameter, std::sqrt(sums[0] / entry.elements),
                           Recorder::kUnknown);
        recorder.parameter("epsilon_floor_share", entry.parameter, sums[1] / entry.elements,
                           Recorder::kUnknown);
        Total& layer = layers[model_.parameters[entry.parameter].layer];
        layer.squares += sums[0];
        layer.floored += sums[1];
        layer.elements += entry.elements;
      }
      for (const LayerInfo& layer : model_.layers) {
        const Total& total = layers[layer.id];
        if (total.elements == 0) continue;
        recorder.layer("adam_update_rms", layer.id, std::sqrt(total.squares / total.elements),
                       Recorder::kUnknown);
        recorder.layer("epsilon_floor_share", layer.id, total.floored / total.elements,
                       Recorder::kUnknown);
      }
    };
  }

 private:
  /// [2]: sum of (m^/sqrt(v^))^2, number of entries on the floor.
  static at::Tensor measure(const ParameterObservation& seen, const v1::ParameterGroup& group) {
    const auto steps = static_cast<double>(seen.adam_step);
    const double first_correction = 1 - std::pow(group.beta1(), steps);
    const double second_correction = 1 - std::pow(group.beta2(), steps);
    const at::Tensor first = seen.adam_first_moment.to(at::kDouble) / first_correction;
    const at::Tensor second = seen.adam_second_moment.to(at::kDouble) / second_correction;
    const at::Tensor ratio = at::where(first.eq(0), at::zeros_like(first), first.square() / second);
    const double floor = 10 * group.epsilon();
    return at::stack({ratio.sum(), second.lt(floor * floor).sum().to(at::kDouble)});
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_adam_probe() { return std::make_unique<AdamProbe>(); }

}  // namespace tycho
