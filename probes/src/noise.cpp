#include <cmath>
#include <memory>
#include <optional>

#include "built_in.h"
#include "left_out.h"
#include "tycho/trace/noise_pool.h"

namespace tycho {
namespace {

/// Unbiased estimates from one step. `exact`: from per-example norms; else from two batch sizes.
struct Estimate {
  double mean_example_square = 0;  ///< mean |g_i|^2; NaN from two batch sizes
  double trace = 0;                ///< tr Sigma
  double signal = 0;               ///< |G|^2
  double trace_variance = 0;       ///< of `trace`, over the examples; NaN where unknown
  bool known = false;
};

/// Gradient noise (theory T1.1). Per-example gradients g_i of the mean loss over B examples, batch
/// gradient g_B: tr Sigma = B/(B-1) (mean |g_i|^2 - |g_B|^2), |G|^2 = |g_B|^2 - tr Sigma / B, both
/// unbiased. Without per-example norms, from M microbatches of b = B/M examples each:
/// tr Sigma = (mean |g_b|^2 - |g_B|^2) / (1/b - 1/B), |G|^2 = (B |g_B|^2 - b mean |g_b|^2) / (B -
/// b). Sums over a layer or the run are recorded only where every parameter that has a gradient was
/// estimated; of the others noise_coverage says what share of the gradient's square was, and
/// covered_noise_trace and covered_signal_sq are sums over that part. noise_scale pools the ratio
/// over the steps that are like now (trace::NoisePool), and is what the analyzer's law says. Needs
/// B >= 2.
class NoiseProbe : public Probe {
 public:
  std::string name() const override { return "noise"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> all = {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    const std::vector<v1::Scope> totals = {v1::SCOPE_RUN, v1::SCOPE_LAYER};
    const std::string source = "McCandlish et al. 2018, arXiv 1812.06162, App. A.1; theory T1.1";
    return {
        define_statistic("per_example_grad_norm_sq", "mean |g_i|^2", "1", all,
                         "Mean over the examples of the squared norm of the example's gradient of "
                         "the mean loss.",
                         source),
        define_statistic("grad_noise_trace", "tr Sigma", "1", all,
                         "Trace of the covariance of one example's gradient, unbiased: "
                         "B/(B-1) (mean |g_i|^2 - |g_B|^2), or from two batch sizes.",
                         source),
        define_statistic("grad_signal_sq", "|G|^2", "1", all,
                         "Squared norm of the expected gradient, unbiased, may be negative: "
                         "|g_B|^2 - tr Sigma / B, or from two batch sizes.",
                         source),
        define_statistic("noise_coverage", "|g_c|^2 / |g|^2", "1", totals,
                         "Share of the squared norm of the batch gradient that belongs to "
                         "parameters whose gradient noise is observed. Below 1 there are no sums "
                         "over all parameters.",
                         source),
        define_statistic("covered_noise_trace", "tr Sigma_c", "1", totals,
                         "grad_noise_trace summed over the parameters whose noise is observed, "
                         "if these are not all.",
                         source),
        define_statistic("covered_signal_sq", "|G_c|^2", "1", totals,
                         "grad_signal_sq summed over the same parameters.", source),
        define_statistic(
            "noise_scale", "B_simple", "examples", all,
            "Current tr Sigma / |G|^2: the ratio of their means over the last observed steps, "
            "as far back as their ratio and scale are unchanged; NaN if these steps do not "
            "determine it within a factor of ten, or the gradient changes its scale within the "
            "last 8.",
            source + "; window and interval: tycho/trace/noise_pool.h"),
        define_statistic("noise_scale_low", "B_simple", "examples", all,
                         "Lower limit of the 95 % interval of noise_scale; from the fourth "
                         "observation on, even if noise_scale is NaN.",
                         "Fieller 1954; tycho/trace/noise_pool.h"),
        define_statistic("noise_scale_high", "B_simple", "examples", all,
                         "Upper limit of the 95 % interval of noise_scale; infinite if the "
                         "signal is not resolved from zero.",
                         "Fieller 1954; tycho/trace/noise_pool.h"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.gradient_norms = true;
    needs.per_example_gradient_norms = true;
    needs.microbatch_gradient_norms = true;
    return needs;
  }

  void setup(const ModelInfo& model) override {
    model_ = model;
    parameter_pool_.resize(model.parameters.size());
    layer_pool_.resize(model.layers.size());
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    auto sent = std::make_shared<std::vector<Sent>>(model_.parameters.size());
    for (const ParameterInfo& parameter : model_.parameters) {
      const ParameterObservation& seen = (*step.parameters)[parameter.id];
      Sent& entry = (*sent)[parameter.id];
      entry.why_not_gradient = why_not_gradient(seen);
      if (step.parameter_sums.defined()) {
        entry.gradient_seen = seen.gradient.defined();
      } else if (seen.gradient_norm_sq.defined()) {
        entry.gradient_seen = true;
        entry.batch_norm = transfer.send(seen.gradient_norm_sq);
      }
      if (!entry.gradient_seen) continue;
      entry.why_not = seen.why_not_per_example;
      int64_t examples = 0;
      for (const at::Tensor& norms : seen.per_example_norm_sq) examples += norms.numel();
      if (examples > 0 && examples == step.batch_size) {
        for (const at::Tensor& norms : seen.per_example_norm_sq) {
          entry.example_norms.push_back(transfer.send(norms));
        }
      } else if (examples > 0) {
        entry.why_not = "the batch size given is not the number of examples seen";
      }
      const auto microbatches = static_cast<int64_t>(seen.microbatch_gradient_norm_sq.size());
      if (entry.example_norms.empty() && microbatches >= 2 && same_size(seen, step.batch_size)) {
        for (const at::Tensor& norm : seen.microbatch_gradient_norm_sq) {
          entry.microbatch_norms.push_back(transfer.send(norm));
        }
      }
    }
    std::optional<size_t> sums;
    if (step.parameter_sums.defined()) sums = transfer.send(step.parameter_sums);
    return [this, sent, sums, number = step.step, batch = static_cast<double>(step.batch_size),
            mean = step.mean_reduction](const Arrived& arrived, Recorder& recorder) {
      record(*sent, sums ? arrived.data(*sums) : nullptr, number, batch, mean, arrived, recorder);
    };
  }

 private:
  struct Sent {
    bool gradient_seen = false;
    size_t batch_norm = 0;  ///< where there are no parameter sums
    std::vector<size_t> example_norms;
    std::vector<size_t> microbatch_norms;
    std::string why_not;
    std::string why_not_gradient;
  };
  struct Total {
    std::vector<double> example_squares;  ///< per example, while every parameter has them
    bool per_example = true;
    Estimate sum{0, 0, 0, 0, true};  ///< over the parameters that were estimated
    bool any = false;
    double square = 0;  ///< of the batch gradient; NaN where part of it is not known
    double covered_square = 0;
    LeftOut left_out;

    void leave_out(const std::string& parameter, double batch_square, const std::string& why) {
      left_out.add(parameter, why);
      per_example = false;
      square += batch_square;
    }
  };

  static bool same_size(const ParameterObservation& seen, int64_t batch_size) {
    const auto microbatches = static_cast<int64_t>(seen.microbatch_gradient_norm_sq.size());
    if (batch_size <= 0 || batch_size % microbatches != 0) return false;
    // Otherwise two losses of the same examples would pass for two microbatches.
    if (static_cast<int64_t>(seen.microbatch_sizes.size()) != microbatches) return false;
    for (const int64_t size : seen.microbatch_sizes) {
      if (size != batch_size / microbatches) return false;
    }
    return true;
  }

  static void finish_exact(const std::vector<double>& squares, double batch_square, double batch,
                           Estimate* estimate) {
    double mean = 0;
    for (const double square : squares) mean += square;
    mean /= batch;
    double variance = 0;
    for (const double square : squares) variance += (square - mean) * (square - mean);
    variance /= (batch - 1);
    estimate->mean_example_square = mean;
    estimate->trace = batch / (batch - 1) * (mean - batch_square);
    estimate->signal = batch_square - estimate->trace / batch;
    // The spread of |g_i|^2 over the examples; that of |g_B|^2 is of order 1/B smaller.
    estimate->trace_variance = variance / batch;
    estimate->known = true;
  }

  void record(const std::vector<Sent>& sent, const double* sums, int64_t step, double batch,
              bool mean, const Arrived& arrived, Recorder& recorder) {
    if (batch < 2) {
      recorder.event(v1::Event::NOT_OBSERVED, "noise_needs_two_examples",
                     "Gradient noise needs a batch of at least two examples", v1::SCOPE_RUN, 0);
      return;
    }
    // From what backward delivered to gradients of the mean loss.
    const double to_mean = mean ? 1 : 1 / (batch * batch);
    const double to_example = mean ? batch * batch : 1;
    std::vector<Total> layers(model_.layers.size());
    Total run;
    for (const ParameterInfo& parameter : model_.parameters) {
      const Sent& entry = sent[parameter.id];
      const auto leave_out = [&](double square, const std::string& why) {
        for (Total* total : {&layers[parameter.layer], &run}) {
          total->leave_out(parameter.name, square, why);
        }
      };
      if (!entry.why_not_gradient.empty()) leave_out(Recorder::kUnknown, entry.why_not_gradient);
      if (!entry.gradient_seen) continue;
      const double batch_square =
          to_mean * (sums != nullptr ? sums[parameter.id * kParameterSums + kGradientSquare]
                                     : arrived.value(entry.batch_norm));
      Estimate estimate;
      std::vector<double> squares;
      if (!entry.example_norms.empty()) {
        squares.reserve(static_cast<size_t>(batch));
        for (const size_t slot : entry.example_norms) {
          const double* norms = arrived.data(slot);
          for (size_t i = 0; i < arrived.size(slot); ++i) squares.push_back(norms[i] * to_example);
        }
        finish_exact(squares, batch_square, batch, &estimate);
      } else if (!entry.microbatch_norms.empty()) {
        const auto parts = static_cast<double>(entry.microbatch_norms.size());
        const double part_size = batch / parts;
        const double to_part = mean ? parts * parts : 1 / (part_size * part_size);
        double part_square = 0;
        for (const size_t slot : entry.microbatch_norms)
          part_square += arrived.value(slot) * to_part;
        part_square /= parts;
        estimate.mean_example_square = Recorder::kUnknown;
        estimate.trace = (part_square - batch_square) / (1 / part_size - 1 / batch);
        estimate.signal = (batch * batch_square - part_size * part_square) / (batch - part_size);
        estimate.trace_variance = Recorder::kUnknown;
        estimate.known = true;
      } else if (batch_square == 0) {
        continue;  // Not reached: .grad was set to zero before. It adds nothing.
      } else {
        const std::string why = entry.why_not.empty() ? "no per-example norms" : entry.why_not;
        recorder.event(v1::Event::NOT_OBSERVED, "gradient_noise_not_observed",
                       "Gradient noise of " + parameter.name + " is not observed: " + why,
                       v1::SCOPE_PARAMETER, parameter.id);
        leave_out(batch_square, why);
        continue;
      }
      if (estimate.known) {
        trace::NoisePool& pool = parameter_pool_[parameter.id];
        pool.add(estimate.trace, estimate.signal, step);
        write(estimate, pool, [&](const char* name, double value, double error) {
          recorder.parameter(name, parameter.id, value, error);
        });
      }
      for (Total* total : {&layers[parameter.layer], &run}) {
        add(estimate, squares, batch_square, total);
      }
    }
    for (const LayerInfo& layer : model_.layers) {
      finish(&layers[layer.id], batch, step, &layer_pool_[layer.id],
             [&](const char* name, double value, double error) {
               recorder.layer(name, layer.id, value, error);
             });
      layers[layer.id].left_out.say("noise", "sums of gradient noise of " + name_of(layer),
                                    v1::SCOPE_LAYER, layer.id, recorder);
    }
    finish(&run, batch, step, &run_pool_,
           [&](const char* name, double value, double error) { recorder.run(name, value, error); });
    run.left_out.say("noise", "sums of gradient noise of the run", v1::SCOPE_RUN, 0, recorder);
  }

  static void add(const Estimate& estimate, const std::vector<double>& squares, double batch_square,
                  Total* total) {
    total->any = true;
    total->square += batch_square;
    total->covered_square += batch_square;
    total->sum.mean_example_square += estimate.mean_example_square;
    total->sum.trace += estimate.trace;
    total->sum.signal += estimate.signal;
    if (squares.empty()) total->per_example = false;
    if (!total->per_example) return;
    total->example_squares.resize(squares.size());
    for (size_t i = 0; i < squares.size(); ++i) total->example_squares[i] += squares[i];
  }

  template <typename Write>
  static void finish(Total* total, double batch, int64_t step, trace::NoisePool* pool,
                     const Write& write_value) {
    if (!total->any && !total->left_out.any()) return;
    // All of a gradient that is exactly zero is covered. NaN where part of its square is not known.
    const bool whole = !total->left_out.any();
    write_value("noise_coverage", whole ? 1 : total->covered_square / total->square,
                Recorder::kUnknown);
    if (!whole) {
      if (!total->any) return;
      write_value("covered_noise_trace", total->sum.trace, Recorder::kUnknown);
      write_value("covered_signal_sq", total->sum.signal, Recorder::kUnknown);
      return;
    }
    total->sum.trace_variance = Recorder::kUnknown;
    if (total->per_example) {
      double mean = 0;
      double variance = 0;
      for (const double square : total->example_squares) mean += square / batch;
      for (const double square : total->example_squares)
        variance += (square - mean) * (square - mean);
      total->sum.trace_variance = variance / (batch - 1) / batch;
    }
    pool->add(total->sum.trace, total->sum.signal, step);
    write(total->sum, *pool, write_value);
  }

  template <typename Write>
  static void write(const Estimate& estimate, const trace::NoisePool& pool,
                    const Write& write_value) {
    const double error = std::sqrt(estimate.trace_variance);
    if (std::isfinite(estimate.mean_example_square) || std::isfinite(estimate.trace_variance)) {
      write_value("per_example_grad_norm_sq", estimate.mean_example_square, error);
    }
    write_value("grad_noise_trace", estimate.trace, error);
    write_value("grad_signal_sq", estimate.signal, Recorder::kUnknown);
    const trace::PooledNoiseScale scale = pool.pooled();
    write_value("noise_scale", scale.value, scale.standard_error);
    write_value("noise_scale_low", scale.low, Recorder::kUnknown);
    write_value("noise_scale_high", scale.high, Recorder::kUnknown);
  }

  ModelInfo model_;
  std::vector<trace::NoisePool> parameter_pool_;
  std::vector<trace::NoisePool> layer_pool_;
  trace::NoisePool run_pool_;
};

}  // namespace

std::unique_ptr<Probe> make_noise_probe() { return std::make_unique<NoiseProbe>(); }

}  // namespace tycho
