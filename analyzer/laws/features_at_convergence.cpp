// At a stationary point of a loss with coupled weight decay the gradient of a layer z = W h is
// G = E[(dl/dz) h'] = -lambda W. From the left with W': W'W = -(1/lambda) E[(dl/dh) h'], because
// dl/dh = W' dl/dz (FACT, Boix-Adsera et al. 2025). The right side F is symmetric then, and its
// antisymmetric part says how far from stationary the layer is. That alone does not suffice: a
// layer that grows along itself is symmetric too. So the decay must have had time, 3/(eta lambda)
// steps, in which a weight without gradient decays to a twentieth.
#include <fmt/format.h>

#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/parameter_settings.h"
#include "src/statistics/recent_half.h"
#include "src/statistics/thinned_series.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.2;   // of |W'W - F|/|W'W|
constexpr double kSymmetric = 0.05;  // |F-F'|/|F|: stationary
constexpr double kStill = 0.98;      // of the residual, from quarter to quarter
constexpr double kDecayTimes = 3;    // of 1/(eta lambda)

const LawDescription& law() {
  static const LawDescription description = {
      "features_at_convergence",
      "Features at convergence (FACT)",
      Line::kEmpiricalLaws,
      "W'W = -(1/lambda) E[(dl/dh) h'], h the input of the layer; measured: |W'W - F|/|W'W|, which "
      "is 0 at a stationary point",
      "Coupled weight decay (SGD, or Adam with L2) on the layer's weight; constant learning rate "
      "for 3/(eta lambda) steps; stationary: |F - F'|/|F| below 0.05; the probe batch is the "
      "training data",
      "If it holds, the layer has converged: it weights its inputs by the gradients they "
      "receive, and more training at these settings changes little. If not yet, the asymmetry "
      "shows how far off it is",
      "Boix-Adsera et al. 2025, arXiv:2507.05644; exact at a stationary point",
      {"fact_residual", "fact_alignment", "fact_asymmetry"},
      {"Decoupled decay (AdamW) would need the preconditioned gradient, which is not measured.",
       "If the probe batch is only a sample of the training data, the right side has noise.",
       "During most of training, layers are far from this point."}};
  return description;
}

class FeaturesAtConvergence : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    residual_ = context.column("fact_residual", v1::SCOPE_LAYER);
    alignment_ = context.column("fact_alignment", v1::SCOPE_LAYER);
    asymmetry_ = context.column("fact_asymmetry", v1::SCOPE_LAYER);
    parameters_ = static_cast<size_t>(context.model().parameter_size());
    layers_.resize(static_cast<size_t>(context.model().layer_size()));
    for (const v1::Layer& layer : context.model().layer()) {
      Layer& own = layers_[layer.id()];
      own.scope = context.scope_name(v1::SCOPE_LAYER, layer.id());
      for (const uint32_t id : layer.parameter()) {
        if (context.model().parameter(static_cast<int>(id)).shape_size() >= 2) own.weight = id;
      }
    }
    settings_version_ = 0;
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      const auto settings = settings_by_parameter(frame.optimizer(), parameters_);
      for (Layer& layer : layers_) {
        if (layer.weight >= settings.size()) continue;
        const ParameterSettings& now = settings[layer.weight];
        if (layer.settings.known && now == layer.settings) continue;
        layer.settings = now;
        layer.since = frame.step();
        layer.series.clear();
        layer.points = ThinnedSeries();
      }
    }
    const ColumnValues residual = frame.column(residual_);
    if (!residual.present) return;
    const ColumnValues alignment = frame.column(alignment_);
    const ColumnValues asymmetry = frame.column(asymmetry_);
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (!std::isfinite(residual[i])) continue;
      layers_[i].measured = true;
      layers_[i].last_step = frame.step();
      layers_[i].series.add({residual[i], alignment[i], asymmetry[i]}, frame.step());
      layers_[i].points.add({residual[i]}, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    for (const Layer& layer : layers_) {
      if (layer.measured) result.push_back(judge_layer(layer));
    }
    if (result.empty()) {
      Finding run = start_finding(law(), "run");
      if (const std::string why = no_decay(); !why.empty()) {
        set_not_applicable(run, why);
        return {run};
      }
      set_not_measured(run, *context_, "gradients by the layers' inputs were", {"fact_residual"});
      result.push_back(run);
    }
    return result;
  }

 private:
  struct Layer {
    std::string scope;
    uint32_t weight = ~0u;
    ParameterSettings settings;
    int64_t since = 0;  // with these settings
    int64_t last_step = -1;
    bool measured = false;
    RecentHalf series{3};  // residual, alignment, asymmetry
    ThinnedSeries points;  // residual
  };

  /// Why the law applies to no layer; empty: it applies to one, or the settings are not known.
  std::string no_decay() const {
    std::string why;
    for (const Layer& layer : layers_) {
      if (layer.weight == ~0u) continue;
      if (!layer.settings.known) return "";
      why = why_not(layer.settings);
      if (why.empty()) return "";
    }
    return why;
  }

  static std::string why_not(const ParameterSettings& settings) {
    if (settings.decays_decoupled())
      return "decoupled weight decay: the preconditioned gradient would be needed";
    if (!(settings.weight_decay > 0))
      return "no weight decay: at a stationary point the right side is 0/0";
    return "";
  }

  static Finding judge_layer(const Layer& layer) {
    Finding finding = start_finding(law(), layer.scope);
    finding.unit = "|W'W - F|/|W'W|";
    finding.evidence_statistic = "fact_residual";
    finding.predicted = 0;
    const ParameterSettings& settings = layer.settings;
    if (!settings.known) {
      set_no_settings(finding);
      finding.predicted = kUnknown;
      return finding;
    }
    if (const std::string why = why_not(settings); !why.empty()) {
      set_not_applicable(finding, why);
      return finding;
    }
    const BlockAverages& blocks = layer.series.blocks();
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = only_observations(blocks.observations()) + " at constant settings";
      return finding;
    }
    finding.window_begin = layer.series.window_begin();
    finding.window_end = layer.series.window_end();
    const Estimate residual = blocks.mean({1, 0, 0});
    const Estimate asymmetry = blocks.mean({0, 0, 1});
    set_measured(finding, residual);
    finding.gate =
        fmt::format("cosine {}, asymmetry {}", format_number(blocks.mean({0, 1, 0}).value),
                    format_number(asymmetry.value));
    const double needed = kDecayTimes / (settings.learning_rate * settings.weight_decay);
    const bool inside = residual.high <= kTolerance && asymmetry.high <= kSymmetric;
    if (inside) {
      set_verdict(finding, Verdict::kHolds);
      finding.advice =
          "The layer has converged: it weights its inputs as its gradients require, and further "
          "training at these settings changes little.";
      return finding;
    }
    const auto elapsed = static_cast<double>(layer.series.window_begin() - layer.since);
    if (elapsed < needed) {
      finding.gate += fmt::format(
          "; weight decay has had {} steps at these settings and needs "
          "{}",
          format_number(elapsed), format_number(needed));
      return finding;
    }
    if (!(asymmetry.high <= kSymmetric)) {
      finding.gate += "; not stationary";
      return finding;
    }
    if (falls(layer.points)) {
      finding.gate += "; nearly stationary, and still approaching";
      return finding;
    }
    // Nothing is random where training is stationary: a drift up or sideways does no harm.
    set_verdict(finding, residual.low > kTolerance     ? Verdict::kViolated
                         : residual.high <= kTolerance ? Verdict::kHolds
                                                       : Verdict::kUnderpowered);
    finding.p_value = residual.standard_error > 0
                          ? student_t_tail((residual.value - kTolerance) / residual.standard_error,
                                           residual.degrees_of_freedom)
                          : 0;
    if (finding.verdict == Verdict::kViolated) {
      finding.importance = 0.5;
      finding.advice =
          "Stationary, but weights and gradients do not balance: does the weight decay equal "
          "its setting, and is the probe batch training data, with the training loss?";
    }
    return finding;
  }

  /// Is the residual lower in the last quarter than in the one before?
  static bool falls(const ThinnedSeries& points) {
    const size_t size = points.points().size();
    const double before = points.median(0, size / 2, size - size / 4);
    const double after = points.median(0, size - size / 4, size);
    return after < kStill * before;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex residual_ = kNoColumn;
  ColumnIndex alignment_ = kNoColumn;
  ColumnIndex asymmetry_ = kNoColumn;
  size_t parameters_ = 0;
  uint64_t settings_version_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Law> make_features_at_convergence() {
  return std::make_unique<FeaturesAtConvergence>();
}

}  // namespace tycho::analyzer
