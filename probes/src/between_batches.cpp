#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "built_in.h"

namespace tycho {
namespace {

/// Whether the examples of a batch are independent, which no estimate of the noise from within one
/// batch can tell. The gradients of the batches of two successive steps, at the same weights: of
/// two batches of B and B' independent examples, drawn apart from the weights,
///   E|g_B - g_B'|^2 = tr Sigma (1/B + 1/B'),   so that
///   between_batch_trace = |g_B - g_B'|^2 / (1/B + 1/B')
/// estimates the tr Sigma that the examples of the first batch give (within_batch_trace). Copies,
/// clusters and sorted data make batches differ more than that.
///
/// The weights are those before the first of the two steps, which neither batch was trained on: the
/// loss of the second step, on its own batch, is evaluated there once more. So what the expected
/// gradient moves in a step is not in it.
///
/// Both over the same parameters: those whose gradient and single examples' norms are known at the
/// first step. Needs the loss of a step on its batch (from the tape, or Session::set_step_loss),
/// one backward pass and at least two examples in each batch. Memory: a copy of the gradient and of
/// the update from the first to the second step. Cost: single examples' norms, and one evaluation
/// of the loss and its gradient.
class BetweenBatchesProbe : public Probe {
 public:
  std::string name() const override { return "between_batches"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> totals = {v1::SCOPE_RUN, v1::SCOPE_LAYER};
    const std::string source = "theory T1.1: the variance of a mean of independent examples";
    return {
        define_statistic("between_batch_trace", "|g_B - g_B'|^2/(1/B + 1/B')", "1", totals,
                         "Squared distance of the gradients of the batches of two successive "
                         "steps, both at the weights before the first, per 1/B + 1/B': tr Sigma "
                         "if the examples of a batch are independent.",
                         source),
        define_statistic("within_batch_trace", "B/(B-1) (mean |g_i|^2 - |g_B|^2)", "1", totals,
                         "tr Sigma from the examples of the first of these batches, over the same "
                         "parameters.",
                         source),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.gradients = true;
    needs.per_example_gradient_norms = true;
    needs.step_surface = true;
    needs.update = true;
    return needs;
  }

  void setup(const ModelInfo& model) override {
    model_ = model;
    first_.reset();
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    if (step.batch_size < 2) {
      first_.reset();
      return [](const Arrived&, Recorder& recorder) {
        recorder.event(v1::Event::NOT_OBSERVED, "between_batches_needs_two_examples",
                       "Whether the examples of a batch are independent needs two of them or more",
                       v1::SCOPE_RUN, 0);
      };
    }
    if (!first_ || first_->step + 1 != step.step) {
      first_ = keep(step);
      return nullptr;
    }
    const First first = *std::exchange(first_, std::nullopt);
    LossSurface* surface = step.step_surface;
    if (surface == nullptr || !step.update.defined() ||
        step.update.sizes() != first.update.sizes()) {
      return nullptr;
    }
    surface->move(-(first.update + step.update));
    const at::Tensor gradient = surface->gradient();
    surface->move({});
    return compare(step, first, gradient, surface->blocks(), transfer);
  }

 private:
  /// What is kept of the first of two steps, by parameter; undefined where it cannot be used.
  struct First {
    int64_t step = 0;
    int64_t batch = 0;
    at::Tensor update;
    std::vector<at::Tensor> gradient;  ///< flat
    std::vector<at::Tensor> examples;  ///< squared norms, float64 [B]
  };
  struct Sent {
    uint32_t parameter = 0;
    size_t distance = 0;
    size_t square = 0;
    size_t examples = 0;
  };
  struct Traces {
    double between = 0;
    double within = 0;
    bool any = false;
  };

  std::optional<First> keep(const StepView& step) const {
    if (!step.update.defined()) return std::nullopt;
    First first{step.step, step.batch_size, step.update.clone(), {}, {}};
    first.gradient.resize(model_.parameters.size());
    first.examples.resize(model_.parameters.size());
    for (const ParameterInfo& parameter : model_.parameters) {
      const ParameterObservation& seen = (*step.parameters)[parameter.id];
      if (seen.per_example_norm_sq.size() != 1) continue;
      const at::Tensor& examples = seen.per_example_norm_sq.front();
      const bool usable = seen.gradient.defined() && seen.gradient.layout() == at::kStrided &&
                          !seen.gradient.is_complex() && examples.numel() == step.batch_size;
      if (!usable) continue;
      first.gradient[parameter.id] = seen.gradient.detach().clone().flatten();
      first.examples[parameter.id] = examples;
    }
    return first;
  }

  Finish compare(const StepView& step, const First& first, const at::Tensor& gradient,
                 const std::vector<LossSurface::Block>& blocks, Transfer& transfer) const {
    const auto batch = static_cast<double>(first.batch);
    const auto other = static_cast<double>(step.batch_size);
    // From what backward delivers to gradients of the mean loss.
    const double to_mean = step.mean_reduction ? 1 : 1 / batch;
    const double other_to_mean = step.mean_reduction ? 1 : 1 / other;
    std::vector<Sent> sent;
    for (const LossSurface::Block& block : blocks) {
      if (block.parameter >= first.gradient.size()) continue;  // of no layer that is selected
      const at::Tensor& mine = first.gradient[block.parameter];
      if (!mine.defined() || mine.numel() != block.size) continue;
      const at::Tensor theirs = gradient.narrow(0, block.begin, block.size).to(at::kDouble);
      Sent entry;
      entry.parameter = block.parameter;
      const at::Tensor own = mine.to(theirs.options());
      entry.distance = transfer.send((own * to_mean - theirs * other_to_mean).square().sum());
      entry.square = transfer.send((own * to_mean).square().sum());
      entry.examples = transfer.send(first.examples[block.parameter]);
      sent.push_back(entry);
    }
    return [this, sent = std::move(sent), batch, other, mean = step.mean_reduction](
               const Arrived& arrived, Recorder& recorder) {
      record(sent, batch, other, mean, arrived, recorder);
    };
  }

  void record(const std::vector<Sent>& sent, double batch, double other, bool mean,
              const Arrived& arrived, Recorder& recorder) const {
    std::vector<Traces> layers(model_.layers.size());
    Traces run;
    for (const Sent& entry : sent) {
      double example_square = 0;  // mean |g_i|^2; delivered is g_i/B of a mean
      for (size_t i = 0; i < arrived.size(entry.examples); ++i)
        example_square += arrived.data(entry.examples)[i];
      example_square *= mean ? batch : 1 / batch;
      const double between = arrived.value(entry.distance) / (1 / batch + 1 / other);
      const double within = batch / (batch - 1) * (example_square - arrived.value(entry.square));
      for (Traces* total : {&layers[model_.parameters[entry.parameter].layer], &run}) {
        total->between += between;
        total->within += within;
        total->any = true;
      }
    }
    for (const LayerInfo& layer : model_.layers) {
      if (!layers[layer.id].any) continue;
      recorder.layer("between_batch_trace", layer.id, layers[layer.id].between, kNoError);
      recorder.layer("within_batch_trace", layer.id, layers[layer.id].within, kNoError);
    }
    if (!run.any) return;
    recorder.run("between_batch_trace", run.between, kNoError);
    recorder.run("within_batch_trace", run.within, kNoError);
  }

  static constexpr double kNoError = Recorder::kUnknown;

  ModelInfo model_;
  std::optional<First> first_;
};

}  // namespace

std::unique_ptr<Probe> make_between_batches_probe() {
  return std::make_unique<BetweenBatchesProbe>();
}

}  // namespace tycho
