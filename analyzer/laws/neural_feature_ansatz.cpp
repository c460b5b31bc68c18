// The neural feature ansatz says that W'W of a layer is proportional to the average gradient outer
// product of the network by the layer's input, E[J'J] (Radhakrishnan et al. 2024). It is found by
// experience and, as its authors and later ones say, heuristic and inexact: nothing derives how
// close the two should be. What is shown is the cosine now against that of the first observation,
// and no verdict is given.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

const LawDescription& law() {
  static const LawDescription description = {
      "neural_feature_ansatz",
      "Neural feature ansatz (descriptive)",
      Line::kEmpiricalLaws,
      "cosine of W'W and E[J'J] rises towards 1, J the Jacobian of the output by the layer's input",
      "None is derived: there is no threshold, and no verdict is given",
      "A cosine that rose means that the layer has learned the directions that the output "
      "depends on; one that did not rise means that it learned little (see the regime of "
      "learning)",
      "Radhakrishnan et al. 2024, arXiv:2212.13881",
      {"feature_ansatz_alignment"},
      {"Heuristic and inexact: values above 0.8 are usual for trained layers; lower values are "
       "not a fault.",
       "If W'W is nearly a multiple of the identity, as in wide layers at initialization, the "
       "cosine is high only if E[J'J] is, too."}};
  return description;
}

class NeuralFeatureAnsatz : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    alignment_ = context.column("feature_ansatz_alignment", v1::SCOPE_LAYER);
    const auto count = static_cast<size_t>(context.model().layer_size());
    first_.resize(count, kUnknown);
    series_.resize(count, RecentHalf(1));
    scope_.clear();
    for (const v1::Layer& layer : context.model().layer())
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
  }

  void observe(const Frame& frame) override {
    const ColumnValues alignment = frame.column(alignment_);
    if (!alignment.present) return;
    for (size_t i = 0; i < series_.size(); ++i) {
      if (!std::isfinite(alignment[i])) continue;
      if (std::isnan(first_[i])) first_[i] = alignment[i];
      series_[i].add({alignment[i]}, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    for (size_t i = 0; i < series_.size(); ++i) {
      const BlockAverages& blocks = series_[i].blocks();
      if (blocks.observations() == 0) continue;
      Finding finding = start_finding(law(), scope_[i]);
      finding.evidence_statistic = "feature_ansatz_alignment";
      finding.unit = "cosine";
      finding.window_begin = series_[i].window_begin();
      finding.window_end = series_[i].window_end();
      const Estimate now = blocks.mean({1});
      set_measured(finding, now);
      if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
        finding.gate = only_observations(blocks.observations());
      } else {
        set_verdict(finding, Verdict::kNotApplicable);
        finding.gate = fmt::format(
            "there is no derived threshold: cosine {}, {} from {} at the first observation",
            format_number(now.value),
            now.low > first_[i]    ? "up"
            : now.high < first_[i] ? "down"
                                   : "not clearly changed",
            format_number(first_[i]));
      }
      result.push_back(finding);
    }
    if (result.empty()) {
      Finding run = start_finding(law(), "run");
      set_not_measured(run, *context_, "gradients by the layers' inputs were",
                       {"feature_ansatz_alignment"});
      result.push_back(run);
    }
    return result;
  }

 private:
  const RunContext* context_ = nullptr;
  ColumnIndex alignment_ = kNoColumn;
  std::vector<double> first_;
  std::vector<RecentHalf> series_;
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_neural_feature_ansatz() {
  return std::make_unique<NeuralFeatureAnsatz>();
}

}  // namespace tycho::analyzer
