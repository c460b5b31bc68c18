// The gradient of one example is g = J'e with J the Jacobian of the outputs and e the derivative of
// the loss by them, and the Gauss-Newton part of the Hessian is E[J'QJ], Q the second derivative by
// the outputs. Where e is random with covariance proportional to Q given the input,
//   squared error 1/2 r^2 with residuals of one size sigma^2 = 2L:  E[J'r^2 J] = 2L H_GN,
//   cross-entropy with labels drawn from the predictions:           E[ee'] = diag p - pp' = Q,
// the covariance of the gradient is 2L H_GN or H_GN (over m where an example's loss is a mean of m
// such terms), up to GG' of the mean gradient. Compared are traces.
//
// Beyond that model tr Sigma/(2L tr H_GN) = 1 + Cov(r^2, |J|^2)/(E r^2 E|J|^2): the ratio says
// whether examples that the network is sensitive to have larger errors. With Gaussian residuals and
// a spread of |J|^2 by half its mean the correlation must be 0.7 to move it out of the band of a
// factor 1.5.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/paired_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.5;
constexpr double kCalibrated = 0.1;  // of loss over entropy, around 1

const LawDescription& law() {
  static const LawDescription description = {
      "noise_curvature",
      "Gradient noise and curvature",
      Line::kUniversalPhenomena,
      "tr Sigma = 2 L tr H_GN / m (squared error), tr H_GN / m (cross-entropy), m loss terms "
      "per example; measured: left over right, within a factor 1.5 of 1",
      "Squared error with residuals whose size does not depend on the input, or cross-entropy "
      "of a calibrated model (loss within 10 % of the mean entropy of its predictions); the "
      "probe batch resembles the data; no dropout",
      "If it holds, noise is large where curvature is: the noise floor of the loss at learning "
      "rate eta is about eta tr Sigma / (4 B), and flat minima have little noise. If not, "
      "errors correlate with the sensitivity of the network: look for outliers among examples "
      "or labels",
      "Fisher information; Jastrzebski et al. 2017, arXiv:1711.04623; Mori et al. 2021, "
      "arXiv:2105.09557",
      {"grad_noise_trace", "gauss_newton_trace", "predicted_noise_trace", "prediction_calibration"},
      {"Sizes are compared, not directions.",
       "On memorised training data, predictions are not calibrated: the labels are not a sample "
       "of them."}};
  return description;
}

class NoiseCurvature : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    noise_ = context.column("grad_noise_trace", v1::SCOPE_RUN);
    trace_ = context.column("gauss_newton_trace", v1::SCOPE_RUN);
    predicted_ = context.column("predicted_noise_trace", v1::SCOPE_RUN);
    calibration_ = context.column("prediction_calibration", v1::SCOPE_RUN);
  }

  void observe(const Frame& frame) override {
    const double noise = frame.column(noise_)[0];
    noise_measured_ = noise_measured_ || std::isfinite(noise);
    trace_measured_ = trace_measured_ || std::isfinite(frame.column(trace_)[0]);
    series_.add(noise, frame.column(predicted_)[0], frame.step());
    const ColumnValues calibration = frame.column(calibration_);
    if (calibration.present && std::isfinite(calibration[0]))
      calibrations_.add({calibration[0]}, frame.step());
  }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the trace predicted";
    finding.evidence_statistic = "grad_noise_trace";
    set_verdict(finding, Verdict::kNotApplicable);
    if (!noise_measured_ || !trace_measured_) {
      if (noise_measured_) {
        set_not_measured(finding, *context_, "the trace of the curvature was",
                         {"gauss_newton_trace"});
      } else {
        set_not_measured(finding, *context_, "the gradient noise was", {"grad_noise_trace"});
      }
      return {finding};
    }
    if (series_.observations() == 0) {
      if (!context_->recorded("predicted_noise_trace")) {
        finding.gate =
            "the loss was not recognised as squared error or cross-entropy: the expected noise "
            "is not known";
      } else {
        set_verdict(finding, Verdict::kNotYet);
        finding.gate = "noise and curvature have not both been recorded yet";
      }
      return {finding};
    }
    if (series_.observations() < 2 * BlockAverages::kMinBlocks) {
      set_verdict(finding, Verdict::kNotYet);
      finding.gate = only_observations(series_.observations());
      return {finding};
    }
    finding.window_begin = series_.pairs().window_begin();
    finding.window_end = series_.pairs().window_end();
    finding.predicted = 1;
    const Estimate ratio = series_.ratio();
    set_measured(finding, ratio);
    finding.evidence_level = series_.mean_second();
    finding.gate =
        fmt::format("noise trace {}, from curvature {}", format_number(series_.mean_first()),
                    format_number(series_.mean_second()));
    if (!(series_.mean_second() > 0)) {
      finding.gate += "; no curvature was found";
      return {finding};
    }
    if (calibrations_.blocks().observations() > 0) {
      const double calibration = calibrations_.blocks().mean({1}).value;
      if (!(std::fabs(calibration - 1) <= kCalibrated)) {
        finding.gate += fmt::format(
            "; the model is not calibrated (loss over mean entropy of the predictions is {}): "
            "its labels are not a sample of its predictions",
            format_number(calibration));
        return {finding};
      }
      finding.gate += fmt::format("; calibrated: loss over entropy {}", format_number(calibration));
    }
    judge_ratio(ratio, &finding);
    return {finding};
  }

 private:
  static void judge_ratio(const Estimate& ratio, Finding* finding) {
    set_verdict(*finding, judge(ratio, 1, kTolerance));
    finding->p_value = band_p_value(ratio, 1 / (1 + kTolerance), 1 + kTolerance);
    if (finding->verdict == Verdict::kHolds) {
      finding->advice = fmt::format(
          "The gradient noise has the size predicted from curvature (ratio {}): it is largest "
          "where the loss is steep, and a smaller learning rate or larger batch lowers the loss "
          "by the cost of the noise.",
          format_interval(ratio.value, ratio.low, ratio.high));
    } else if (finding->verdict == Verdict::kViolated) {
      finding->importance = 0.5;
      finding->advice =
          ratio.value > 1
              ? fmt::format(
                    "The gradient noise is {} times the value predicted from curvature: the "
                    "errors are largest on the examples that the network is most sensitive to. "
                    "Look for outliers or labels whose noise depends on the input; is dropout "
                    "on?",
                    format_number(ratio.value))
              : fmt::format(
                    "The gradient noise is {} of the value predicted from curvature: the "
                    "examples that the network is most sensitive to are the best fitted.",
                    format_number(ratio.value));
    }
  }

  const RunContext* context_ = nullptr;
  ColumnIndex noise_ = kNoColumn;
  ColumnIndex trace_ = kNoColumn;
  ColumnIndex predicted_ = kNoColumn;
  ColumnIndex calibration_ = kNoColumn;
  bool noise_measured_ = false;
  bool trace_measured_ = false;
  PairedSeries series_;  // tr Sigma, and as predicted
  RecentHalf calibrations_{1};
};

}  // namespace

std::unique_ptr<Law> make_noise_curvature() { return std::make_unique<NoiseCurvature>(); }

}  // namespace tycho::analyzer
