// Central flow with one critical mode. Averaged over an oscillation w +- x u along the top
// eigenvector u, the gradient is grad L + (x^2/2) grad S, S = u'Hu. At the edge of stability S
// stays at the threshold: 0 = <dS/dt> is proportional to <grad S, -grad L> - (x^2/2) |grad S|^2, so
// that
//   <x^2> = 2 <-grad L, grad S>/|grad S|^2
// whatever the speed of the flow (learning rate, momentum). Both are taken at the middle of a step,
// where the oscillation cancels, with u projected out; x^2 there is (u.update)^2/4. What is tested
// is that the oscillation that is seen, and nothing else, holds the sharpness down.
#include <fmt/format.h>

#include <cmath>

#include "laws/central_flow_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.2;  // of the ratio: the expansion is of third order

const LawDescription& law() {
  static const LawDescription description = {
      "central_flow",
      "Central flow: size of the oscillation",
      Line::kEmpiricalLaws,
      "<x^2> = <2 <-grad L, grad S>/|grad S|^2>, x the amplitude along the top eigenvector, S its "
      "curvature; measured: left over right",
      "At the edge of stability (S within 20 % of the threshold) with one critical mode (next "
      "eigenvalue below 0.95 of it); full or large batch; SGD with any momentum, all parameters at "
      "one learning rate",
      "If it holds, the oscillation keeps the sharpness at the edge: it is benign. If not, "
      "something other than the measured loss moves the sharpness",
      "Cohen et al. 2024, arXiv:2410.24206; Damian et al. 2022, arXiv:2209.15594",
      {"central_flow_variance", "central_flow_variance_predicted", "central_flow_loss_excess",
       "central_flow_sharpness", "central_flow_second_eigenvalue", "stability_threshold",
       "learning_rate", "loss", "probe_loss", "batch_size", "grad_noise_trace", "grad_signal_sq"},
      {"It compares averages over many cycles of growth and decay of the oscillation, which are "
       "slow if sharpening is slow.",
       "Valid to third order in the amplitude; several critical modes would need their "
       "covariance, which is not measured."}};
  return description;
}

class CentralFlow : public Law {
 public:
  const LawDescription& description() const override { return law(); }
  void begin(const RunContext& context) override { series_.begin(context); }
  void observe(const Frame& frame) override { series_.observe(frame); }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the variance predicted";
    finding.evidence_statistic = "central_flow_variance";
    if (!series_.ready(&finding)) return {finding};
    const BlockAverages& blocks = series_.edge().blocks();
    const Estimate ratio = blocks.ratio({1, 0, 0, 0}, {0, 1, 0, 0});
    finding.evidence_level = blocks.mean({0, 1, 0, 0}).value;
    judge_ratio(finding, ratio, kTolerance, series_.variance_distance());
    if (finding.verdict == Verdict::kHolds) {
      finding.advice =
          "At the edge, the oscillation along the sharpest direction has the size that holds "
          "the sharpness there: it is benign, and averaging the weights or decaying the "
          "learning rate removes it.";
    } else if (finding.verdict == Verdict::kViolated) {
      finding.importance = 0.6;
      finding.advice = fmt::format(
          "The oscillation is {} than the size that holds the sharpness at the edge: does the "
          "training loss differ from the probe loss (regularizers, augmentation, clipping), or "
          "is the oscillation driven by noise?",
          ratio.value > 1 ? "larger" : "smaller");
    }
    return {finding};
  }

 private:
  CentralFlowSeries series_;
};

}  // namespace

std::unique_ptr<Law> make_central_flow() { return std::make_unique<CentralFlow>(); }

}  // namespace tycho::analyzer
