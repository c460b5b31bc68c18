#include <cmath>
#include <memory>
#include <optional>

#include "built_in.h"

namespace tycho {
namespace {

/// A ratio of two averages over observed steps with exponential forgetting, and its standard error
/// by the delta method. Steps are taken as independent: the analyzer gives the interval that is
/// not.
class PooledRatio {
 public:
  void add(double numerator, double denominator) {
    if (!std::isfinite(numerator) || !std::isfinite(denominator)) return;
    constexpr double kKeep = 1 - 1.0 / 64;  // an effective window of about 128 observations
    weight_ = kKeep * weight_ + 1;
    weight_square_ = kKeep * kKeep * weight_square_ + 1;
    const double share = 1 / weight_;
    const double dn = numerator - numerator_;
    const double dd = denominator - denominator_;
    numerator_ += share * dn;
    denominator_ += share * dd;
    // Weighted second moments about the running means.
    nn_ = (1 - share) * (nn_ + share * dn * dn);
    dd_ = (1 - share) * (dd_ + share * dd * dd);
    nd_ = (1 - share) * (nd_ + share * dn * dd);
  }
  /// NaN while the averaged denominator is not positive: the data do not tell signal from noise.
  double ratio() const { return denominator_ > 0 ? numerator_ / denominator_ : Recorder::kUnknown; }
  double standard_error() const {
    const double count = weight_ * weight_ / weight_square_;
    if (!(denominator_ > 0) || count < 2) return Recorder::kUnknown;
    const double r = ratio();
    const double variance = std::max(nn_ - 2 * r * nd_ + r * r * dd_, 0.0);
    return std::sqrt(variance / (count - 1)) / denominator_;
  }

 private:
  double weight_ = 0;
  double weight_square_ = 0;
  double numerator_ = 0;
  double denominator_ = 0;
  double nn_ = 0;
  double dd_ = 0;
  double nd_ = 0;
};

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
/// estimated. noise_scale pools the ratio over the observed steps. Needs B >= 2.
class NoiseProbe : public Probe {
 public:
  std::string name() const override { return "noise"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> all = {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    const char* source = "McCandlish et al. 2018, arXiv 1812.06162, App. A.1; theory T1.1";
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
        define_statistic(
            "noise_scale", "B_simple", "examples", all,
            "tr Sigma / |G|^2, both averaged over the observed steps so far (about the "
            "last 128) before dividing; its error takes steps as independent.",
            source),
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
    parameter_ratio_.resize(model.parameters.size());
    layer_ratio_.resize(model.layers.size());
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    auto sent = std::make_shared<std::vector<Sent>>(model_.parameters.size());
    for (const ParameterInfo& parameter : model_.parameters) {
      const ParameterObservation& seen = (*step.parameters)[parameter.id];
      Sent& entry = (*sent)[parameter.id];
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
    return [this, sent, sums, batch = static_cast<double>(step.batch_size),
            mean = step.mean_reduction](const Arrived& arrived, Recorder& recorder) {
      record(*sent, sums ? arrived.data(*sums) : nullptr, batch, mean, arrived, recorder);
    };
  }

 private:
  struct Sent {
    bool gradient_seen = false;
    size_t batch_norm = 0;  ///< where there are no parameter sums
    std::vector<size_t> example_norms;
    std::vector<size_t> microbatch_norms;
    std::string why_not;
  };
  struct Total {
    std::vector<double> example_squares;  ///< per example, while every parameter has them
    bool per_example = true;
    Estimate sum{0, 0, 0, 0, true};
    bool any = false;
  };

  static bool same_size(const ParameterObservation& seen, int64_t batch_size) {
    const auto microbatches = static_cast<int64_t>(seen.microbatch_gradient_norm_sq.size());
    if (batch_size <= 0 || batch_size % microbatches != 0) return false;
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

  void record(const std::vector<Sent>& sent, const double* sums, double batch, bool mean,
              const Arrived& arrived, Recorder& recorder) {
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
      } else {
        recorder.event(v1::Event::NOT_OBSERVED, "gradient_noise_not_observed",
                       "Gradient noise of " + parameter.name + " is not observed: " +
                           (entry.why_not.empty() ? "no per-example norms" : entry.why_not),
                       v1::SCOPE_PARAMETER, parameter.id);
      }
      if (estimate.known) {
        PooledRatio& ratio = parameter_ratio_[parameter.id];
        ratio.add(estimate.trace, estimate.signal);
        write(estimate, ratio, [&](const char* name, double value, double error) {
          recorder.parameter(name, parameter.id, value, error);
        });
      }
      for (Total* total : {&layers[parameter.layer], &run}) add(estimate, squares, total);
    }
    for (const LayerInfo& layer : model_.layers) {
      finish(&layers[layer.id], batch, &layer_ratio_[layer.id],
             [&](const char* name, double value, double error) {
               recorder.layer(name, layer.id, value, error);
             });
    }
    finish(&run, batch, &run_ratio_,
           [&](const char* name, double value, double error) { recorder.run(name, value, error); });
  }

  static void add(const Estimate& estimate, const std::vector<double>& squares, Total* total) {
    total->any = true;
    total->sum.known = total->sum.known && estimate.known;
    total->sum.mean_example_square += estimate.mean_example_square;
    total->sum.trace += estimate.trace;
    total->sum.signal += estimate.signal;
    if (squares.empty()) total->per_example = false;
    if (!total->per_example) return;
    total->example_squares.resize(squares.size());
    for (size_t i = 0; i < squares.size(); ++i) total->example_squares[i] += squares[i];
  }

  template <typename Write>
  static void finish(Total* total, double batch, PooledRatio* ratio, const Write& write_value) {
    if (!total->any || !total->sum.known) return;
    total->sum.trace_variance = Recorder::kUnknown;
    if (total->per_example) {
      double mean = 0;
      double variance = 0;
      for (const double square : total->example_squares) mean += square / batch;
      for (const double square : total->example_squares)
        variance += (square - mean) * (square - mean);
      total->sum.trace_variance = variance / (batch - 1) / batch;
    }
    ratio->add(total->sum.trace, total->sum.signal);
    write(total->sum, *ratio, write_value);
  }

  template <typename Write>
  static void write(const Estimate& estimate, const PooledRatio& ratio, const Write& write_value) {
    const double error = std::sqrt(estimate.trace_variance);
    if (std::isfinite(estimate.mean_example_square) || std::isfinite(estimate.trace_variance)) {
      write_value("per_example_grad_norm_sq", estimate.mean_example_square, error);
    }
    write_value("grad_noise_trace", estimate.trace, error);
    write_value("grad_signal_sq", estimate.signal, Recorder::kUnknown);
    write_value("noise_scale", ratio.ratio(), ratio.standard_error());
  }

  ModelInfo model_;
  std::vector<PooledRatio> parameter_ratio_;
  std::vector<PooledRatio> layer_ratio_;
  PooledRatio run_ratio_;
};

}  // namespace

std::unique_ptr<Probe> make_noise_probe() { return std::make_unique<NoiseProbe>(); }

}  // namespace tycho
