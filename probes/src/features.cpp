#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "feature_support.h"

namespace tycho {
namespace {

/// Does each layer learn? z is what a layer's own operator gives out on the probe batch (before the
/// nonlinearity, with its bias), at the parameters after the update; 0 is the first observation of
/// the session (of the segment, where a run was resumed), which is said; s the one before. RMS over
/// all entries of all uses of the layer's weight.
///
/// z_t - z_0 is the sum of what the layer itself has learnt, effective_update = (W_t - W_0) x_t +
/// (b_t - b_0), and of what reaches it from below, propagated_change = W_0 (x_t - x_0): the refined
/// coordinate check. Where the input did not change the latter is exactly 0. For a normalisation x
/// is its normalised input and W its gain.
///
/// Costs one forward pass, one application of each layer's operator, and a few passes over each
/// output (docs/performance.md); keeps two copies of all outputs and one of the weights.
class FeaturesProbe : public Probe {
 public:
  std::string name() const override { return "features"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> layer = {v1::SCOPE_LAYER};
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("feature_rms", "RMS(z_t)", "1", layer,
                         "RMS of the layer's output before the nonlinearity, on the probe batch.",
                         "Yang & Hu 2021"),
        since_first_observation(
            define_statistic("feature_change", "RMS(z_t - z_0)", "1", layer,
                             "RMS change of the layer's output on the probe batch since the first "
                             "observation.",
                             "Yang & Hu 2021")),
        since_first_observation(define_statistic(
            "feature_change_relative", "RMS(z_t - z_0)/RMS(z_0)", "1", layer,
            "feature_change relative to the output at the first observation.", "theory T1.11")),
        define_statistic("feature_step_change", "RMS(z_t - z_s)/(t - s)", "1/step", layer,
                         "RMS change of the layer's output on the probe batch since the "
                         "previous observation, per step.",
                         "theory T1.8"),
        since_first_observation(
            define_statistic("effective_update", "RMS((W_t - W_0) x_t + b_t - b_0)", "1", layer,
                             "Part of the change of the layer's output that comes from its own "
                             "parameters.",
                             "Haas et al. 2025")),
        since_first_observation(
            define_statistic("propagated_change", "RMS(W_0 (x_t - x_0))", "1", layer,
                             "Part of the change of the layer's output that comes from its input.",
                             "Haas et al. 2025")),
        define_statistic("output_rms", "RMS(f_t)", "1", run,
                         "RMS of the network's output on the probe batch (ProbeLoss::output).",
                         "Yang & Hu 2021"),
        since_first_observation(define_statistic(
            "output_change", "RMS(f_t - f_0)", "1", run,
            "RMS change of the network's output on the probe batch since the first "
            "observation.",
            "Yang & Hu 2021")),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr || !pass->comparable()) return nullptr;
    const bool first = !begun_;
    std::vector<Sent> sent;
    std::vector<uint32_t> changed_shape;
    for (auto& [layer, uses] : uses_by_layer(*pass)) {
      Sent entry;
      entry.layer = layer;
      if (first) keep_first(layer, uses);
      const auto known = layers_.find(layer);
      if (known == layers_.end()) continue;  // it was not used at the first observation
      Layer& kept = known->second;
      if (!same_shapes(uses, kept.first)) {
        changed_shape.push_back(layer);
        continue;
      }
      entry.sums = transfer.send(sums(uses, kept, first));
      for (const LayerUse& use : uses) entry.elements += static_cast<double>(use.output.numel());
      entry.compared = !first;
      entry.steps = static_cast<double>(step.step - kept.last_step);
      kept.last.clear();
      for (const LayerUse& use : uses) kept.last.push_back(own(use.output));
      if (first) kept.first = kept.last;
      kept.last_step = step.step;
      sent.push_back(entry);
    }
    Outputs outputs;
    if (pass->has_output()) outputs = send_outputs(*pass, transfer);
    begun_ = true;
    return [sent = std::move(sent), changed_shape = std::move(changed_shape), outputs, first,
            now = step.step](const Arrived& arrived, Recorder& recorder) {
      if (first) say_reference(now, recorder);
      for (const uint32_t layer : changed_shape) say_shape_changed(layer, recorder);
      for (const Sent& entry : sent) record(entry, arrived, recorder);
      if (outputs.elements > 0) {
        const double* sums = arrived.data(outputs.slot);
        recorder.run("output_rms", std::sqrt(sums[0] / outputs.elements), Recorder::kUnknown);
        if (outputs.compared) {
          recorder.run("output_change", std::sqrt(sums[1] / outputs.elements), Recorder::kUnknown);
        }
      }
    };
  }

 private:
  enum Sum : int64_t { kNow, kFirst, kChange, kStepChange, kEffective, kPropagated };
  struct Sent {
    uint32_t layer = 0;
    size_t sums = 0;
    double elements = 0;
    double steps = 0;
    bool compared = false;
  };
  struct Outputs {
    size_t slot = 0;
    double elements = 0;
    bool compared = false;
  };
  struct Layer {
    std::vector<at::Tensor> first;       // outputs at the first observation
    std::vector<at::Tensor> last;        // at the one before
    std::vector<at::Tensor> input_sums;  // that tell whether an input changed
    int64_t last_step = 0;
  };

  static at::Tensor input_sum(const at::Tensor& input) {
    const at::Tensor x = at::isFloatingType(input.scalar_type()) ? input : input.to(at::kDouble);
    return at::stack({square_sum(x), x.sum().to(at::kDouble)});
  }

  void keep_first(uint32_t layer, const std::vector<LayerUse>& uses) {
    Layer& kept = layers_[layer];
    for (const LayerUse& use : uses) {
      kept.first.push_back(use.output);
      kept.input_sums.push_back(input_sum(use.input));
      for (const uint32_t id : {use.weight, use.bias}) {
        if (id == LayerUse::kNone || weights_.count(id) > 0) continue;
        weights_[id] = model_.parameters[id].tensor.detach().clone();
      }
    }
  }

  static bool same_shapes(const std::vector<LayerUse>& uses, const std::vector<at::Tensor>& kept) {
    if (uses.size() != kept.size()) return false;
    for (size_t i = 0; i < kept.size(); ++i) {
      if (uses[i].output.sizes() != kept[i].sizes()) return false;
    }
    return true;
  }

  at::Tensor change_of(uint32_t parameter) {
    if (parameter == LayerUse::kNone) return {};
    // Weights that came later (another bias) have no first value.
    const auto first = weights_.find(parameter);
    const at::Tensor now = model_.parameters[parameter].tensor.detach();
    return first == weights_.end() ? at::Tensor() : now - first->second;
  }

  /// float64 [6], see Sum.
  at::Tensor sums(const std::vector<LayerUse>& uses, Layer& kept, bool first) {
    at::Tensor total;
    for (size_t i = 0; i < uses.size(); ++i) {
      const LayerUse& use = uses[i];
      const at::Tensor now = square_sum(use.output);
      std::vector<at::Tensor> parts(6, at::zeros_like(now));
      parts[kNow] = now;
      if (!first) {
        at::Tensor change = use.output - kept.first[i];
        parts[kFirst] = square_sum(kept.first[i]);
        parts[kChange] = square_sum(change);
        parts[kStepChange] = square_sum(use.output - kept.last[i]);
        const at::Tensor effective =
            use.op->apply(use.input, change_of(use.weight), change_of(use.bias));
        parts[kEffective] = square_sum(effective);
        const at::Tensor unchanged = input_sum(use.input).eq(kept.input_sums[i]).all();
        // Not the difference of roundings, where nothing was propagated.
        parts[kPropagated] = square_sum(change.sub_(effective)).masked_fill(unchanged, 0);
      }
      const at::Tensor stacked = at::stack(parts);
      total = total.defined() ? total + stacked : stacked;
    }
    return total;
  }

  Outputs send_outputs(FeaturePass& pass, Transfer& transfer) {
    Outputs result;
    const std::vector<at::Tensor>& outputs = pass.outputs();
    if (!begun_) {
      for (const at::Tensor& output : outputs) first_outputs_.push_back(output.clone());
    }
    bool same = outputs.size() == first_outputs_.size();
    for (size_t i = 0; same && i < outputs.size(); ++i) {
      same = outputs[i].sizes() == first_outputs_[i].sizes();
    }
    if (!same) return result;
    at::Tensor total;
    for (size_t i = 0; i < outputs.size(); ++i) {
      const at::Tensor parts =
          at::stack({square_sum(outputs[i]), square_sum(outputs[i] - first_outputs_[i])});
      total = total.defined() ? total + parts : parts;
      result.elements += static_cast<double>(outputs[i].numel());
    }
    if (result.elements > 0) result.slot = transfer.send(total);
    result.compared = begun_;
    return result;
  }

  static void record(const Sent& entry, const Arrived& arrived, Recorder& recorder) {
    if (!(entry.elements > 0)) return;
    const double* sums = arrived.data(entry.sums);
    const auto rms = [&](Sum which) { return std::sqrt(sums[which] / entry.elements); };
    const auto record = [&](const char* statistic, double value) {
      recorder.layer(statistic, entry.layer, value, Recorder::kUnknown);
    };
    record("feature_rms", rms(kNow));
    if (!entry.compared) return;
    record("feature_change", rms(kChange));
    if (sums[kFirst] > 0)
      record("feature_change_relative", std::sqrt(sums[kChange] / sums[kFirst]));
    if (entry.steps > 0) record("feature_step_change", rms(kStepChange) / entry.steps);
    record("effective_update", rms(kEffective));
    record("propagated_change", rms(kPropagated));
  }

  ModelInfo model_;
  bool begun_ = false;
  std::map<uint32_t, Layer> layers_;
  std::map<uint32_t, at::Tensor> weights_;  // at the first observation, by parameter id
  std::vector<at::Tensor> first_outputs_;
};

}  // namespace

std::unique_ptr<Probe> make_features_probe() { return std::make_unique<FeaturesProbe>(); }

}  // namespace tycho
