#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "left_out.h"

namespace tycho {
namespace {

/// Counts NaN and infinite entries of every gradient and weight. A finite sum of squares proves
/// that there is none, so on the CPU entries are counted only where that sum is not finite;
/// elsewhere the count is taken on the device. The first step and the first parameter, in the
/// model's order, become an event.
class NonFiniteProbe : public Probe {
 public:
  std::string name() const override { return "non_finite"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_RUN, v1::SCOPE_PARAMETER};
    return {
        define_statistic("grad_non_finite", "#{g: NaN, inf}", "entries", scopes,
                         "NaN and infinite entries of the gradient that backward delivered.",
                         "docs/session.md"),
        define_statistic("weight_non_finite", "#{w: NaN, inf}", "entries", scopes,
                         "NaN and infinite entries of the weights after the update.",
                         "docs/session.md"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.parameter_sums = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    std::vector<Slots> slots(model_.parameters.size());
    const bool on_host = step.parameter_sums.device().is_cpu();
    const double* sums = on_host ? step.parameter_sums.data_ptr<double>() : nullptr;
    for (const ParameterInfo& parameter : model_.parameters) {
      const ParameterObservation& seen = (*step.parameters)[parameter.id];
      const double* row = on_host ? sums + parameter.id * kParameterSums : nullptr;
      Slots& slot = slots[parameter.id];
      slot.gradient_seen = seen.gradient.defined();
      slot.gradient_unknown = !why_not_gradient(seen).empty();
      if (!slot.gradient_seen && seen.gradient_norm_sq.defined()) {
        slot.norm = transfer.send(seen.gradient_norm_sq);
      }
      if (slot.gradient_seen && !(on_host && std::isfinite(row[kGradientSquare]))) {
        slot.gradient = transfer.send(count(seen.gradient));
      }
      // Weights after the update are finite where those before and the update are.
      const bool finite = on_host && std::isfinite(row[kWeightSquare]) &&
                          (!seen.update_known || std::isfinite(row[kUpdateSquare]));
      if (!finite) slot.weight = transfer.send(count(parameter.tensor.detach()));
    }
    return [this, slots = std::move(slots)](const Arrived& arrived, Recorder& recorder) {
      double gradient_total = 0;
      bool complete = true;
      double weight_total = 0;
      for (const ParameterInfo& parameter : model_.parameters) {
        const Slots& slot = slots[parameter.id];
        complete = complete && !slot.gradient_unknown;
        if (slot.gradient_seen) {
          const double entries = slot.gradient == kNone ? 0 : arrived.value(slot.gradient);
          gradient_total += entries;
          recorder.parameter("grad_non_finite", parameter.id, entries, Recorder::kUnknown);
          if (entries > 0) announce(parameter, "gradient", recorder);
        } else if (slot.norm != kNone && !std::isfinite(arrived.value(slot.norm))) {
          announce(parameter, "gradient", recorder);  // How many is not known any more.
        }
        const double entries = slot.weight == kNone ? 0 : arrived.value(slot.weight);
        weight_total += entries;
        recorder.parameter("weight_non_finite", parameter.id, entries, Recorder::kUnknown);
        if (entries > 0) announce(parameter, "weight", recorder);
      }
      if (complete) recorder.run("grad_non_finite", gradient_total, Recorder::kUnknown);
      recorder.run("weight_non_finite", weight_total, Recorder::kUnknown);
    };
  }

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);
  struct Slots {
    bool gradient_seen = false;
    bool gradient_unknown = false;
    size_t gradient = kNone;
    size_t norm = kNone;
    size_t weight = kNone;
  };

  static at::Tensor count(const at::Tensor& values) {
    const at::Tensor entries = values.is_sparse() ? values.coalesce().values() : values;
    return at::isfinite(entries).logical_not_().sum().to(at::kDouble);
  }

  static void announce(const ParameterInfo& parameter, const char* what, Recorder& recorder) {
    recorder.event(v1::Event::NON_FINITE, std::string("non_finite_") + what,
                   std::string("NaN or infinity in the ") + what + " of " + parameter.name,
                   v1::SCOPE_PARAMETER, parameter.id);
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_non_finite_probe() { return std::make_unique<NonFiniteProbe>(); }

}  // namespace tycho
