// Adam's normalised update u_i = m_i / sqrt(v_i) (bias-corrected). For gradients that are
// independent over time with mean^2/variance = rho per coordinate and slowly varying moments,
//   U^2 = mean_i u_i^2 = (rho + k) / (rho + 1),  k = (1 - b1)/(1 + b1):
// E m^2 = mean^2 + k var and v = mean^2 + var. So sqrt(k) <= U <= 1. Below: gradients alternate in
// sign (oscillation) or epsilon dominates; above: gradients grow faster than v follows.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/parameter_settings.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.05;
// Of sqrt(k): oscillation. Entries whose gradients shrink while others' do not, and bursts, make U
// smaller too: 0.77 of it was seen in healthy networks, where |g|^2 as a whole told nothing.
constexpr double kLowFlag = 0.65;
constexpr double kFewestEntries = 16;  // below: U is no average, and small by chance or by one
                                       // shrunk gradient
constexpr double kHighFlag = 1.2;      // stale second moment
constexpr double kStale = 0.9;       // of |g|^2 over its average with Adam's memory: v lags behind
constexpr double kStaleSlack = 0.8;  // of U^2, where it does: entries differ in how much
constexpr double kLargestEpsilonShare = 0.1;  // of entries whose sqrt(v) is near epsilon

const LawDescription& law() {
  static const LawDescription description = {
      "adam_update_rms",
      "Adam's update RMS",
      Line::kHyperparameters,
      "U = RMS(m/sqrt(v)) lies between sqrt((1-beta1)/(1+beta1)) (noise only) and 1 (signal only); "
      "signal to noise per coordinate rho = (U^2-k)/(1-U^2)",
      "Adam or AdamW; moments vary slowly; epsilon far below sqrt(v); past the first 1/(1-beta2) "
      "steps",
      "U shows how much of a step is signal. Below the band: the step oscillates, lower the "
      "learning rate or check epsilon; above 1.2: the second moment is stale, which comes "
      "before loss spikes",
      "Exact for independent stationary gradients; Wortsman et al. 2023, arXiv:2304.13013 on "
      "spikes",
      {"adam_update_rms", "epsilon_floor_share", "update_norm_sq", "weight_dot_update",
       "weight_norm_sq", "grad_norm_sq"},
      {}};
  return description;
}

class AdamUpdateRms : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    rms_ = context.column("adam_update_rms", v1::SCOPE_PARAMETER);
    epsilon_share_ = context.column("epsilon_floor_share", v1::SCOPE_PARAMETER);
    update_ = context.column("update_norm_sq", v1::SCOPE_PARAMETER);
    dot_ = context.column("weight_dot_update", v1::SCOPE_PARAMETER);
    weight_ = context.column("weight_norm_sq", v1::SCOPE_PARAMETER);
    gradient_ = context.column("grad_norm_sq", v1::SCOPE_PARAMETER);
    const size_t count = static_cast<size_t>(context.model().parameter_size());
    series_.resize(count, RecentHalf(4));
    memory_.assign(count, Memory());
    settings_.resize(count);
    scope_.clear();
    elements_.clear();
    last_share_.resize(series_.size(), kUnknown);
    for (const v1::Parameter& parameter : context.model().parameter()) {
      elements_.push_back(static_cast<double>(parameter.element_count()));
      scope_.push_back(context.scope_name(v1::SCOPE_PARAMETER, parameter.id()));
    }
    settings_version_ = 0;
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() == nullptr) return;
    if (frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      settings_ = settings_by_parameter(frame.optimizer(), settings_.size());
      seen_settings_ = true;
    }
    remember(frame);
    const ColumnValues rms = frame.column(rms_);
    const ColumnValues update = frame.column(update_);
    if (!rms.present && !update.present) return;
    measured_ = true;
    const ColumnValues dot = frame.column(dot_);
    const ColumnValues weight = frame.column(weight_);
    const ColumnValues share = frame.column(epsilon_share_);
    for (size_t i = 0; i < series_.size(); ++i) {
      const ParameterSettings& s = settings_[i];
      if (!s.is_adam() || !(s.beta1 > 0)) continue;
      if (static_cast<double>(frame.step()) < first_step(s)) continue;
      // Between two measurements the share is that of the last: updates are seen more often.
      if (std::isfinite(share[i])) last_share_[i] = share[i];
      double square = rms[i] * rms[i];
      if (!rms.present) {
        // The update is -eta (u + lambda w), lambda the decoupled decay: u from what is known of w
        // and dw. With AMSGrad u is another, smaller one.
        const double decay = s.decays_decoupled() ? s.learning_rate * s.weight_decay : 0;
        square = (update[i] + 2 * decay * dot[i] + decay * decay * weight[i]) /
                 (s.learning_rate * s.learning_rate * elements_[i]);
        if (s.amsgrad || !(s.learning_rate > 0)) continue;
      }
      series_[i].add({square, std::isfinite(last_share_[i]) ? last_share_[i] : 0, memory_[i].now,
                      memory_[i].average},
                     frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    std::vector<Finding> result;
    bool any_adam = false;
    double wait = 0;
    for (size_t i = 0; i < series_.size(); ++i) {
      if (settings_[i].is_adam() && settings_[i].beta1 > 0) {
        any_adam = true;
        wait = first_step(settings_[i]);
      }
      if (series_[i].blocks().observations() > 0) result.push_back(judge_parameter(i));
    }
    if (result.empty()) {
      Finding finding = start_finding(law(), "run");
      if (any_adam && !measured_) {
        set_not_measured(finding, *context_, "the size of the updates was",
                         {"adam_update_rms", "update_norm_sq"});
      } else if (any_adam) {
        finding.gate = fmt::format("moments settle after {} steps", format_number(wait));
      } else {
        if (seen_settings_) {
          set_not_applicable(finding, "the optimizer is not Adam");
        } else {
          set_no_settings(finding);
        }
      }
      result.push_back(finding);
    }
    return result;
  }

 private:
  /// What the second moment remembers of |g|^2, from the steps at which that was observed.
  struct Memory {
    double now = 1;
    double average = 1;
    int64_t step = -1;  // -1: not observed
  };

  void remember(const Frame& frame) {
    const ColumnValues gradient = frame.column(gradient_);
    for (size_t i = 0; gradient.present && i < memory_.size(); ++i) {
      if (!std::isfinite(gradient[i]) || !settings_[i].is_adam()) continue;
      Memory& memory = memory_[i];
      const double kept =
          memory.step < 0 ? 0
                          : std::pow(settings_[i].beta2, steps_between(memory.step, frame.step()));
      memory.now = gradient[i];
      memory.average = kept * memory.average + (1 - kept) * gradient[i];
      memory.step = frame.step();
    }
  }

  /// The moments have forgotten their start; the second one needs longer.
  static double first_step(const ParameterSettings& s) {
    return std::max(10 / (1 - s.beta1), 1 / (1 - s.beta2));
  }

  Finding judge_parameter(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    finding.unit = "1";
    finding.evidence_statistic =
        context_->recorded("adam_update_rms") ? "adam_update_rms" : "update_norm_sq";
    const double k = (1 - settings_[i].beta1) / (1 + settings_[i].beta1);
    const double floor = std::sqrt(k);
    if (finding.evidence_statistic == "adam_update_rms") finding.evidence_level = floor;
    const BlockAverages& blocks = series_[i].blocks();
    if (blocks.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = "too few observations";
      return finding;
    }
    finding.window_begin = series_[i].window_begin();
    finding.window_end = series_[i].window_end();
    const Estimate square = blocks.mean({1, 0});
    finding.measured = std::sqrt(square.value);
    finding.ci_low = std::sqrt(std::max(0.0, square.low));
    finding.ci_high = std::sqrt(std::max(0.0, square.high));
    // Predicted is a band; shown is its point nearest to what was measured.
    finding.predicted = std::clamp(finding.measured, floor, 1.0);
    const double share = blocks.mean({0, 1}).value;
    if (share > kLargestEpsilonShare) {
      set_verdict(finding, Verdict::kNotApplicable);
      finding.gate = fmt::format("epsilon dominates {:.0f} % of the entries", 100 * share);
      finding.advice =
          "Much of this parameter is updated as by SGD: a smaller epsilon would restore Adam's "
          "updates.";
      return finding;
    }
    const double low = floor * (1 - kTolerance);
    const double high = 1 + kTolerance;
    const bool inside = judge_band(square, low * low, high * high) == Verdict::kHolds;
    // Gradients that become smaller leave a second moment that is too large for them.
    const double lag = blocks.mean({0, 0, 1, 0}).value / blocks.mean({0, 0, 0, 1}).value;
    const bool stale = lag < kStale;
    const double low_flag = floor * kLowFlag * (stale ? std::sqrt(lag * kStaleSlack) : 1);
    // Entries on epsilon's floor hardly move: where their share is not known, a small U may be
    // theirs.
    const bool blind = finding.measured < floor && !std::isfinite(last_share_[i]);
    const bool few = finding.measured < floor && elements_[i] < kFewestEntries;
    const bool outside =
        !blind && !few &&
        judge_band(square, low_flag * low_flag, kHighFlag * kHighFlag) == Verdict::kViolated;
    set_verdict(finding, inside    ? Verdict::kHolds
                         : outside ? Verdict::kViolated
                                   : Verdict::kUnderpowered);
    if (stale && !inside && !outside && finding.measured < floor) {
      finding.gate = fmt::format(
          "the gradient shrinks faster than the second moment forgets: |g|^2 is {} of its "
          "average over 1/(1-beta2) steps, and U is smaller by as much",
          format_number(lag));
    }
    if (blind) {
      if (!inside)
        finding.gate = "U is small, and the share of entries at epsilon's floor is not known: " +
                       why_not_recorded(*context_, {"epsilon_floor_share"});
    } else if (few) {
      if (!inside)
        finding.gate = fmt::format("U is small, and not an average: {:.0f} entries", elements_[i]);
    } else {
      finding.p_value = band_p_value(square, low_flag * low_flag, kHighFlag * kHighFlag);
    }
    if (inside) {
      const double signal = (square.value - k) / std::max(1e-12, 1 - square.value);
      finding.advice = signal > 0 ? fmt::format("Signal to noise per coordinate is about {}.",
                                                format_number(signal))
                                  : "The steps are noise: the signal is below what can be "
                                    "resolved.";
    } else if (outside && finding.measured < floor) {
      finding.advice = fmt::format(
          "U = {} is below the noise floor {}: successive gradients oppose each other; the step "
          "oscillates, and a lower learning rate may descend faster.",
          format_number(finding.measured), format_number(floor));
    } else if (outside) {
      finding.advice = fmt::format(
          "U = {} is above 1: gradients grow faster than the second moment follows, which comes "
          "before "
          "loss spikes. Lower beta2 or clip.",
          format_number(finding.measured));
    }
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex rms_ = kNoColumn;
  ColumnIndex epsilon_share_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  ColumnIndex dot_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
  ColumnIndex gradient_ = kNoColumn;
  bool measured_ = false;
  std::vector<double> last_share_;  // on epsilon's floor; NaN: never measured
  std::vector<double> elements_;
  uint64_t settings_version_ = 0;
  bool seen_settings_ = false;
  std::vector<RecentHalf> series_;  // U^2, share on the floor, |g|^2, its average
  std::vector<Memory> memory_;
  std::vector<ParameterSettings> settings_;
  std::vector<std::string> scope_;
};

}  // namespace

std::unique_ptr<Law> make_adam_update_rms() { return std::make_unique<AdamUpdateRms>(); }

}  // namespace tycho::analyzer
