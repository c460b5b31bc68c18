#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "krylov/trace.h"
#include "not_observed.h"

namespace tycho {
namespace {

/// What the trace of the covariance Sigma of one example's gradient is where gradient noise is
/// aligned with curvature (theory T2.11). With terms of curvature a, n examples, and
/// G = sum over terms of a J'J (cross-entropy: a J'(diag p - pp')J), the Gauss-Newton matrix:
///   squared error with residuals of size s^2 that do not depend on the inputs: example i has the
///     gradient a n sum_t r_t J_t, so Sigma = a n s^2 G, with s^2 = 2 L / (a terms);
///   cross-entropy where labels are drawn from the predictions: Sigma = a n G.
/// Which loss it is is found from its derivatives, see LossSurface::output_loss. Needs
/// ProbeLoss::output and ProbeLoss::examples. 18 Gauss-Newton products (Hutch++).
class NoiseCurvatureProbe : public Probe {
 public:
  std::string name() const override { return "noise_curvature"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("gauss_newton_trace", "tr H_GN", "1", run,
                         "Trace of the Gauss-Newton matrix of the probe loss: unbiased, with its "
                         "standard error.",
                         "Schraudolph 2002; Meyer, Musco, Musco & Woodruff 2021"),
        define_statistic("predicted_noise_trace", "tr Sigma", "1", run,
                         "Trace of the covariance of one example's gradient if noise were aligned "
                         "with curvature: 2 L tr(H_GN) / m for a squared error, tr(H_GN) / m for a "
                         "cross-entropy of weight 1, m terms per example.",
                         "theory T2.11"),
        define_statistic("prediction_calibration", "L / H(p)", "1", run,
                         "Cross-entropy over the mean entropy of the predictions: 1 where labels "
                         "are as uncertain as predicted, above it for overconfident predictions.",
                         "theory T2.11"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr) return nullptr;
    OutputLoss loss = surface->output_loss();
    if (loss.kind != OutputLoss::kUnknown && loss.examples <= 0) {
      loss.kind = OutputLoss::kUnknown;
      loss.why_unknown = "ProbeLoss::examples was not given";
    }
    if (loss.kind == OutputLoss::kUnknown) {
      return not_observed("noise_curvature_not_observed",
                          "noise and curvature cannot be compared: " + loss.why_unknown);
    }
    const at::Generator generator = own_generator(step, 6);
    const DiagonalSamples diagonal =
        sample_diagonal([&](const at::Tensor& v) { return surface->gauss_newton_product(v); },
                        surface->dimension(), [&] { return sign_vector(*surface, generator); });
    const double exact = diagonal.exact.sum(at::kDouble).item<double>();
    const at::Tensor sums = diagonal.samples.sum({1}, false, at::kDouble).to(at::kCPU);
    const std::vector<double> samples(sums.data_ptr<double>(),
                                      sums.data_ptr<double>() + sums.numel());
    return [=](const Arrived&, Recorder& recorder) {
      const double trace = exact + mean(samples);
      const double error = standard_error(samples);
      const auto terms = static_cast<double>(loss.terms);
      const auto examples = static_cast<double>(loss.examples);
      const double factor = loss.kind == OutputLoss::kSquaredError
                                ? 2 * loss.value * examples / terms
                                : loss.curvature * examples;
      recorder.run("gauss_newton_trace", trace, error);
      recorder.run("predicted_noise_trace", factor * trace, factor * error);
      if (loss.kind == OutputLoss::kCrossEntropy && loss.entropy > 0) {
        recorder.run("prediction_calibration", loss.value / loss.entropy, Recorder::kUnknown);
      }
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_noise_curvature_probe() {
  return std::make_unique<NoiseCurvatureProbe>();
}

}  // namespace tycho
