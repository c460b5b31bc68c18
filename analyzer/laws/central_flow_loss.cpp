// An oscillation of variance x^2 along the top eigenvector raises the time average of the loss over
// the loss of the mean trajectory by (S/2) x^2 to second order. With x^2 = 2 <-grad L, grad S>/
// |grad S|^2 of the central flow this is a prediction from derivatives at the mean point alone:
//   <(L before + L after)/2 - L middle> = <(S/2) x^2 predicted>.
// The fourth order along u, (1/24) L'''' x^4, is what may break it first.
#include <fmt/format.h>

#include <cmath>

#include "laws/central_flow_series.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.2;

const LawDescription& law() {
  static const LawDescription description = {
      "central_flow_loss",
      "Central flow: loss of the oscillation",
      Line::kEmpiricalLaws,
      "<(L before + L after)/2 - L middle> = <S <-grad L, grad S>/|grad S|^2>; measured: left over "
      "right",
      "As central_flow: at the edge of stability with one critical mode, full or large batch, SGD "
      "with any momentum",
      "The excess is the cost of the oscillation: a decay of the learning rate, or an average "
      "of the weights, gains about as much at once",
      "Cohen et al. 2024, arXiv:2410.24206",
      {"central_flow_variance", "central_flow_variance_predicted", "central_flow_loss_excess",
       "central_flow_sharpness", "central_flow_second_eigenvalue", "stability_threshold",
       "learning_rate", "loss", "probe_loss", "batch_size", "grad_noise_trace", "grad_signal_sq"},
      {"Second order in the amplitude.",
       "The immediate gain is not the whole effect: below the edge, training sharpens further."}};
  return description;
}

class CentralFlowLoss : public Law {
 public:
  const LawDescription& description() const override { return law(); }
  void begin(const RunContext& context) override { series_.begin(context); }
  void observe(const Frame& frame) override { series_.observe(frame); }

  std::vector<Finding> findings() const override {
    Finding finding = start_finding(law(), "run");
    finding.unit = "of the excess predicted";
    finding.evidence_statistic = "central_flow_loss_excess";
    if (!series_.ready(&finding)) return {finding};
    const BlockAverages& blocks = series_.edge().blocks();
    const Estimate ratio = blocks.ratio({0, 0, 1, 0}, {0, 0, 0, 1});
    finding.evidence_level = blocks.mean({0, 0, 0, 1}).value;
    judge_ratio(finding, ratio, kTolerance, series_.excess_distance());
    const Estimate excess = blocks.mean({0, 0, 1, 0});
    if (finding.verdict == Verdict::kHolds && excess.low > 0) {
      const double share = excess.value / series_.last_loss();
      finding.importance = share > 0.05 ? 0.55 : 0.4;
      finding.advice = fmt::format(
          "The oscillation at the edge costs {} of the loss{}: a decay of the learning rate, or an "
          "average of the weights, gains that at once.",
          format_interval(excess.value, excess.low, excess.high),
          share > 0 && share < 1 ? fmt::format(" ({:.2g} % of it)", 100 * share) : "");
    } else if (finding.verdict == Verdict::kViolated) {
      finding.importance = 0.5;
      finding.advice = fmt::format(
          "The oscillation costs {} loss than the central flow predicts: its amplitude is not "
          "the one that holds the sharpness, or is too large for a second-order expansion.",
          ratio.value > 1 ? "more" : "less");
    }
    return {finding};
  }

 private:
  CentralFlowSeries series_;
};

}  // namespace

std::unique_ptr<Law> make_central_flow_loss() { return std::make_unique<CentralFlowLoss>(); }

}  // namespace tycho::analyzer
