// A matrix of independent entries has its singular values within the edge of Marchenko and Pastur,
// s (sqrt N + sqrt M). What is learned shows as singular values beyond it. That training makes
// them, how many, and how the tail is shaped, nothing derives: the numbers are shown against those
// of the first observation, and no verdict is given.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr double kNoiseBulk = 0.15;  // largest difference of distributions

const LawDescription& law() {
  static const LawDescription description = {
      "weight_spectrum",
      "Spectrum of the weights (descriptive)",
      Line::kUniversalPhenomena,
      "singular values beyond the Marchenko-Pastur edge s (sqrt N + sqrt M) of the bulk; effective "
      "rank exp(entropy); tail exponent alpha of s^2",
      "None is derived: no verdict is given; edge and spikes are meaningful if the bulk is that "
      "of independent entries",
      "Spikes absent at first are directions that were learned; a layer without spikes still "
      "looks like its initialization",
      "Marchenko and Pastur 1967; Martin and Mahoney 2021, arXiv:1810.01075",
      {"spectrum_spikes", "spectrum_bulk_distance", "effective_rank", "tail_exponent"},
      {"That a tail exponent separates good layers from bad ones is only a correlation found "
       "across models.",
       "A tail that is not a power law has no exponent, and none is shown."}};
  return description;
}

class WeightSpectrum : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    spikes_ = context.column("spectrum_spikes", v1::SCOPE_LAYER);
    bulk_ = context.column("spectrum_bulk_distance", v1::SCOPE_LAYER);
    rank_ = context.column("effective_rank", v1::SCOPE_LAYER);
    tail_ = context.column("tail_exponent", v1::SCOPE_LAYER);
    layers_.resize(static_cast<size_t>(context.model().layer_size()));
    scope_.clear();
    for (const v1::Layer& layer : context.model().layer())
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
  }

  void observe(const Frame& frame) override {
    const ColumnValues spikes = frame.column(spikes_);
    const ColumnValues rank = frame.column(rank_);
    if (!spikes.present && !rank.present) return;
    const ColumnValues bulk = frame.column(bulk_);
    const ColumnValues tail = frame.column(tail_);
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (!std::isfinite(spikes[i]) && !std::isfinite(rank[i])) continue;
      const Numbers now = {frame.step(),
                           spikes[i],
                           bulk[i],
                           rank[i],
                           tail[i],
                           tail.present && tail.standard_error != nullptr && i < tail.size
                               ? tail.standard_error[i]
                               : kUnknown};
      if (layers_[i].first.step < 0) layers_[i].first = now;
      layers_[i].last = now;
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].last.step >= 0) result.push_back(describe_layer(i));
    }
    if (result.empty()) {
      Finding run = start_finding(law(), "run");
      set_not_measured(run, *context_, "the spectra of the weights were", {"spectrum_spikes"});
      result.push_back(run);
    }
    return result;
  }

 private:
  struct Numbers {
    int64_t step = -1;
    double spikes = kUnknown;
    double bulk = kUnknown;
    double rank = kUnknown;
    double tail = kUnknown;
    double tail_error = kUnknown;
  };
  struct Layer {
    Numbers first;
    Numbers last;
  };

  Finding describe_layer(size_t i) const {
    const Numbers& first = layers_[i].first;
    const Numbers& last = layers_[i].last;
    Finding finding = start_finding(law(), scope_[i]);
    set_verdict(finding, Verdict::kNotApplicable);
    finding.evidence_statistic = "spectrum_spikes";
    finding.unit = "singular values beyond the edge";
    finding.measured = last.spikes;
    finding.window_begin = first.step;
    finding.window_end = last.step;
    finding.gate = "nothing is predicted";
    const auto change = [](double from, double to) {
      return from == to ? format_number(to)
                        : fmt::format("{} (at first {})", format_number(to), format_number(from));
    };
    if (std::isfinite(last.spikes))
      finding.gate += fmt::format("; beyond the edge: {}", change(first.spikes, last.spikes));
    if (last.bulk > kNoiseBulk)
      finding.gate += ", but the bulk is not that of independent entries, so its edge means little";
    if (std::isfinite(last.rank))
      finding.gate += fmt::format("; effective rank {}", change(first.rank, last.rank));
    if (std::isfinite(last.tail)) {
      finding.gate += fmt::format(
          "; tail exponent {}{}", format_number(last.tail),
          std::isfinite(last.tail_error) ? " +- " + format_number(last.tail_error) : std::string());
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex spikes_ = kNoColumn;
  ColumnIndex bulk_ = kNoColumn;
  ColumnIndex rank_ = kNoColumn;
  ColumnIndex tail_ = kNoColumn;
  std::vector<Layer> layers_;
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_weight_spectrum() { return std::make_unique<WeightSpectrum>(); }

}  // namespace tycho::analyzer
