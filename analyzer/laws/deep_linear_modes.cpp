// A linear network W_L ... W_1 that fits y to whitened inputs by gradient flow, from small balanced
// weights, learns each singular value of the best map by itself (Saxe et al. 2013):
//   du/dt = kappa L u^(2-2/L) (s - u),
// s the mode's strength in the best map, u that in the network's, t the learning rate times steps
// (over 1 - momentum), kappa the normalisation of the loss, kappa/2 sum_k (s_k - u_k)^2 + constant.
// For L = 2 it is a sigmoid that rises from 10 % to 90 % in ln(81)/(2 kappa s). kappa is not asked
// for: it is the fall of the probe loss over that of sum_k (s_k - u_k)^2/2.
//
// While v = u/s rises from v_1 to v_2, with the singular vectors aligned by then, the time must be
//   kappa t = s^(2/L-2) integral of dv/(L v^(2-2/L) (1-v)) from v_1 to v_2.
// Judged is the one over the other, the speed at which a mode is learned in units of the predicted.
// Layers share a mode as u^(2/L) each only where they are balanced: V'V - W W', which is conserved,
// must be small against u^(2/L) where the timing begins. With D of it in one mode of two layers the
// speed is sqrt(1 + (D/2u)^2) times as large, 3 % at D = u/2. Its norm is read off its share of the
// squared weights, which are sum_k u_k^(2/L) a layer once modes have risen.
// Steps of gradient descent follow the flow to about half of kappa L s^(2-2/L) eta.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "laws/linear_network.h"

namespace tycho::analyzer {
namespace {

constexpr double kTolerance = 0.2;
constexpr double kLow = 0.1;   // of s: where a mode's rise is timed from
constexpr double kHigh = 0.9;  // and to
constexpr double kLeastRise = 0.3;
constexpr uint64_t kFewest = 3;     // observations of a rise
constexpr double kSmallest = 0.01;  // of the strongest mode: weaker ones are left out
constexpr double kSmallStart = 0.05;
constexpr double kBalanced = 0.5;      // of u^(2/L), where the timing begins
constexpr double kLongestStep = 0.25;  // of the fastest mode's time
constexpr double kLeastFall = 0.1;     // of sum (s-u)^2, for kappa
constexpr size_t kMostModes = 64;
constexpr size_t kMostShown = 8;

const LawDescription& law() {
  static const LawDescription description = {
      "deep_linear_modes",
      "Modes of a deep linear network",
      Line::kSolvableSettings,
      "du/dt = kappa L u^(2-2/L) (s-u) for each singular value u of the whole map, s of the best "
      "map, t = eta steps; two layers: u(t) = s e^(2 kappa s t)/(e^(2 kappa s t) - 1 + s/u_0); "
      "measured: speed over the predicted",
      "A chain of linear layers without bias; squared error; whitened inputs; initial modes below "
      "5 % of what they become, from balanced layers; plain or heavy-ball descent without weight "
      "decay, in steps short "
      "for the fastest mode",
      "Strong modes are learned first, weak ones after a plateau of length ln(s/u_0)/(2 kappa "
      "s): a loss that does not fall need not have converged. Larger initial weights shorten "
      "the plateau",
      "Saxe, McClelland and Ganguli 2013, arXiv:1312.6120",
      {"mode_strength", "target_mode_strength", "balance_residual", "probe_loss", "learning_rate"},
      {"Whitening of the inputs is not checked: without it modes mix, and a violation may mean "
       "no more than that."}};
  return description;
}

/// Integral of dv/(L v^(2-2/L) (1-v)) by Simpson's rule in log(v/(1-v)), where it is smooth.
double rise_time(double from, double to, double layers) {
  const double power = 2 - 2 / layers;
  const double begin = std::log(from / (1 - from));
  const double end = std::log(to / (1 - to));
  constexpr int kIntervals = 200;
  const double step = (end - begin) / kIntervals;
  double sum = 0;
  for (int i = 0; i <= kIntervals; ++i) {
    const double v = 1 / (1 + std::exp(-(begin + i * step)));
    const double weight = i == 0 || i == kIntervals ? 1 : i % 2 == 1 ? 4 : 2;
    sum += weight * std::pow(v, 1 - power) / layers;  // dv = v (1-v) d log(v/(1-v))
  }
  return sum * step / 3;
}

struct Mode {
  double target = 0;
  double start = kUnknown;  // u/s at the first observation
  uint64_t observations = 0;
  double begin = 0;  // v, and the time, where the rise was seen first and last
  double begin_time = 0;
  double end = 0;
  double end_time = 0;
  int64_t half_step = -1;
};

class DeepLinearModes : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    strength_ = context.column("mode_strength", v1::SCOPE_INDEX);
    target_ = context.column("target_mode_strength", v1::SCOPE_INDEX);
    balance_ = context.column("balance_residual", v1::SCOPE_LAYER);
    probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
    rate_ = context.column("learning_rate", v1::SCOPE_RUN);
  }

  void observe(const Frame& frame) override {
    if (frame.optimizer() != nullptr && frame.optimizer_version() != settings_version_) {
      settings_version_ = frame.optimizer_version();
      why_not_ = why_no_gradient_flow(frame.optimizer(), true);
      if (why_not_.empty()) {
        const v1::ParameterGroup& group = frame.optimizer()->group(0);
        speed_ = (1 - group.dampening()) / (1 - group.momentum());
        if (!(last_rate_ > 0)) last_rate_ = group.learning_rate();
      }
    }
    const double rate = frame.column(rate_)[0];
    if (std::isfinite(rate)) last_rate_ = rate;
    if (last_step_ >= 0) {
      time_ += last_rate_ * speed_ * steps_between(last_step_, frame.step());
    }
    last_step_ = frame.step();
    const double loss = frame.column(probe_loss_)[0];
    const ColumnValues strength = frame.column(strength_);
    const ColumnValues target = frame.column(target_);
    if (!strength.present) return;
    measured_ = true;
    if (!target.present) return;
    has_target_ = true;
    if (const ColumnValues balance = frame.column(balance_); balance.present) {
      layers_ = 1;
      imbalance_ = 0;
      for (size_t i = 0; i < balance.size; ++i) {
        if (!std::isfinite(balance[i])) continue;
        layers_ += 1;
        imbalance_ = std::max(imbalance_, balance[i]);
      }
      double squares = 0;
      for (size_t k = 0; k < strength.size; ++k) {
        if (strength[k] > 0) squares += std::pow(strength[k], 2 / layers_);
      }
      imbalance_ *= 2 * squares;
    }
    take_modes(strength, target, frame.step());
    if (std::isfinite(loss)) take_loss(loss, strength, target);
  }

  std::vector<Finding> findings() const override {
    Finding run = start_finding(law(), "run");
    run.unit = "of the predicted speed";
    run.evidence_statistic = "mode_strength";
    run.predicted = 1;
    if (settings_version_ > 0 && !why_not_.empty()) {
      set_not_applicable(run, why_not_);
      return {run};
    }
    if (!measured_ || !has_target_ || settings_version_ == 0) {
      if (!measured_) {
        explain_missing_modes(run, *context_);
      } else if (!has_target_) {
        set_verdict(run, Verdict::kNotMeasured);
        run.gate =
            "the targets of the probe batch are not known: Tycho finds them if the loss is a "
            "squared error, given as a probe loss with `output`";
      } else {
        set_no_settings(run);
      }
      run.predicted = kUnknown;
      return {run};
    }
    return judge_modes(run);
  }

 private:
  void take_modes(const ColumnValues& strength, const ColumnValues& target, int64_t step) {
    modes_.resize(std::max(modes_.size(), std::min(strength.size, kMostModes)));
    for (size_t k = 0; k < modes_.size(); ++k) {
      Mode& mode = modes_[k];
      const double s = target[k];
      if (!(s > kSmallest * target[0]) || !std::isfinite(strength[k])) continue;
      mode.target = s;
      const double v = strength[k] / s;
      if (std::isnan(mode.start)) mode.start = v;
      if (v >= 0.5 && mode.half_step < 0) mode.half_step = step;
      if (v < kLow || v > kHigh) continue;
      if (mode.observations++ == 0) {
        mode.begin = v;
        mode.begin_time = time_;
      }
      mode.end = v;
      mode.end_time = time_;
    }
    if (begin_ < 0) begin_ = step;
    end_ = step;
  }

  void take_loss(double loss, const ColumnValues& strength, const ColumnValues& target) {
    double sum = 0;
    for (size_t k = 0; k < strength.size; ++k) {
      const double rest = target[k] - strength[k];
      if (std::isfinite(rest)) sum += rest * rest / 2;
    }
    if (std::isnan(first_loss_)) {
      first_loss_ = loss;
      first_rest_ = sum;
    }
    kappa_ = first_rest_ - sum > kLeastFall * first_rest_
                 ? (first_loss_ - loss) / (first_rest_ - sum)
                 : kUnknown;
  }

  /// kappa L s^(2-2/L): of the mode's growth.
  double growth(const Mode& mode) const {
    return kappa_ * layers_ * std::pow(mode.target, 2 - 2 / layers_);
  }

  std::vector<Finding> judge_modes(Finding run) const {
    run.window_begin = begin_;
    run.window_end = end_;
    set_verdict(run, Verdict::kNotYet);
    if (!(kappa_ > 0)) {
      run.gate =
          "no mode has risen: the normalisation of the loss cannot be determined from "
          "its fall";
      return {run};
    }
    std::vector<Finding> result;
    std::vector<double> speed;
    size_t large_start = 0;
    size_t waiting = 0;
    size_t unbalanced = 0;
    double fastest = 0;
    for (size_t k = 0; k < modes_.size(); ++k) {
      const Mode& mode = modes_[k];
      if (!(mode.target > 0)) continue;
      fastest = std::max(fastest, growth(mode) * last_rate_ * speed_);
      if (!(mode.start < kSmallStart)) {
        ++large_start;
        continue;
      }
      if (mode.observations < kFewest || mode.end - mode.begin < kLeastRise) {
        ++waiting;
        continue;
      }
      if (!(imbalance_ <= kBalanced * std::pow(mode.begin * mode.target, 2 / layers_))) {
        ++unbalanced;
        continue;
      }
      const double predicted = rise_time(mode.begin, mode.end, layers_) /
                               (kappa_ * std::pow(mode.target, 2 - 2 / layers_));
      const double ratio = predicted / (mode.end_time - mode.begin_time);
      speed.push_back(ratio);
      if (result.size() < kMostShown) result.push_back(describe_mode(k, ratio));
    }
    run.gate = fmt::format("{} layers; loss {} sum (s-u)^2", format_number(layers_),
                           format_number(kappa_ / 2));
    if (large_start > 0) {
      run.gate += fmt::format(
          "; {} modes left out that began above {:.0f} % of their final "
          "strength",
          large_start, 100 * kSmallStart);
    }
    if (unbalanced > 0) {
      run.gate +=
          fmt::format("; {} modes left out, shared by layers that are not balanced", unbalanced);
    }
    if (fastest > kLongestStep) {
      set_verdict(run, Verdict::kNotApplicable);
      run.gate += fmt::format("; a step is {} of the fastest mode's time: too long for the flow",
                              format_number(fastest));
      return {run};
    }
    if (speed.empty()) {
      if (waiting == 0) set_verdict(run, Verdict::kNotApplicable);
      run.gate +=
          waiting == 0 ? "; none is left" : "; no mode was seen to rise at three observations";
      return {run};
    }
    std::sort(speed.begin(), speed.end());
    run.measured = speed[speed.size() / 2];
    run.ci_low = speed.front();
    run.ci_high = speed.back();
    run.confidence = 1;
    size_t inside = 0;
    for (const double ratio : speed) inside += within(ratio);
    set_verdict(run, inside == speed.size()      ? Verdict::kHolds
                     : 2 * inside < speed.size() ? Verdict::kViolated
                                                 : Verdict::kUnderpowered);
    run.gate += fmt::format("; {} of {} modes rise at the predicted speed", inside, speed.size());
    if (run.verdict == Verdict::kHolds && waiting > 0) {
      run.advice = fmt::format(
          "{} weaker modes have not risen: the loss will fall again after a plateau.", waiting);
      run.importance = 0.55;
    } else if (run.verdict == Verdict::kViolated) {
      run.importance = 0.5;
      run.advice =
          "Modes are not learned independently: are the inputs whitened, is the loss the "
          "squared error, and are the probe data the training data?";
    }
    result.insert(result.begin(), run);
    return result;
  }

  static bool within(double ratio) {
    return ratio >= 1 / (1 + kTolerance) && ratio <= 1 + kTolerance;
  }

  Finding describe_mode(size_t k, double ratio) const {
    Finding finding = start_finding(law(), "index:" + std::to_string(k));
    finding.unit = "of the predicted speed";
    finding.evidence_statistic = "mode_strength";
    finding.evidence_level = modes_[k].target;
    finding.measured = ratio;
    finding.predicted = 1;
    finding.window_begin = begin_;
    finding.window_end = end_;
    set_verdict(finding, within(ratio) ? Verdict::kHolds : Verdict::kViolated);
    finding.importance = finding.verdict == Verdict::kHolds ? 0.2 : 0.3;
    finding.gate = fmt::format("strength {} in the best map{}", format_number(modes_[k].target),
                               modes_[k].half_step >= 0
                                   ? fmt::format(", half of it at step {}", modes_[k].half_step)
                                   : "");
    return finding;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex strength_ = kNoColumn;
  ColumnIndex target_ = kNoColumn;
  ColumnIndex balance_ = kNoColumn;
  ColumnIndex probe_loss_ = kNoColumn;
  ColumnIndex rate_ = kNoColumn;
  bool measured_ = false;
  bool has_target_ = false;
  uint64_t settings_version_ = 0;
  std::string why_not_;
  double speed_ = 1;  // (1 - dampening)/(1 - momentum)
  double last_rate_ = kUnknown;
  double time_ = 0;
  double layers_ = 1;
  double imbalance_ = 0;  // |V'V - W W'|, the largest over layers, seen last
  double kappa_ = kUnknown;
  double first_loss_ = kUnknown;
  double first_rest_ = 0;  // sum (s-u)^2/2
  int64_t last_step_ = -1;
  int64_t begin_ = -1;
  int64_t end_ = -1;
  std::vector<Mode> modes_;
};

}  // namespace

std::unique_ptr<Law> make_deep_linear_modes() { return std::make_unique<DeepLinearModes>(); }

}  // namespace tycho::analyzer
