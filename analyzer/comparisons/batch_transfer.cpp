// Where gradient noise dominates a step, training follows a stochastic differential equation in
// which batch size B and learning rate eta enter through their ratio only: with SGD (eta, B) and (k
// eta, k B) trace the same loss over examples seen, with Adam (sqrt(k) eta, k B) does, with 1 -
// beta scaled by k and epsilon by 1/sqrt(k) (Malladi et al. 2022).
//
// Curves of a family of such runs are compared in four stretches of equal ratio of examples. The
// mean of the smoothed loss over a stretch is one number per run: seeds are independent, steps are
// not. Coincide means within twice the standard deviation between seeds.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "comparisons/comparison_law.h"
#include "laws/law_support.h"
#include "src/compare/curves.h"

namespace tycho::analyzer {
namespace {

constexpr int kStretches = 4;
constexpr int kPointsPerStretch = 12;
constexpr double kSeedNoises = 2;        // curves coincide within so many
constexpr double kExcludedNoises = 5;    // the interval must not reach that
constexpr double kFloor = 0.01;          // of what the loss falls: bins tell no less apart
constexpr double kSameRatio = 0.02;      // of eta / B^p within a family
constexpr double kFirstSteps = 10;       // of the largest batch are left out
constexpr double kNoiseDominated = 0.5;  // largest batch over the noise scale

const LawDescription& law() {
  static const LawDescription description = {
      "batch_transfer",
      "Transfer of the learning rate between batch sizes",
      Line::kHyperparameters,
      "Loss over examples is the same for (eta, B) and (k eta, k B) with SGD, (sqrt(k) eta, k B) "
      "with Adam (1 - beta times k, epsilon over sqrt(k)): max |dL| < 2 standard deviations "
      "between seeds",
      "Batch sizes below half of the noise scale; runs whose batch size and learning rate "
      "differ by the rule, and that differ in nothing else; at least two seeds",
      "If it holds, scale the learning rate by the rule when the batch size changes, and tune "
      "at the cheapest batch size. If it fails, the largest batch is no longer dominated by "
      "noise: raise the learning rate less",
      "Malladi et al. 2022, arXiv:2205.10287; Smith et al. 2018, arXiv:1711.00489",
      {"loss", "probe_loss", "batch_size", "grad_noise_trace", "grad_signal_sq"},
      {"Without a measured noise scale, its gate is assumed to be open.",
       "The first 10 steps of the largest batch are left out: a large step may leave the region of "
       "the continuous limit."}};
  return description;
}

/// Exponent of B in eta; 0: the optimizer has no rule.
double rule(const std::string& optimizer) {
  if (optimizer == "SGD") return 1;
  if (optimizer == "Adam" || optimizer == "AdamW" || optimizer == "RMSprop") return 0.5;
  return 0;
}

struct Family {
  double ratio = 0;                             // eta / B^p
  std::map<double, std::vector<size_t>> level;  // runs by batch size
};

/// Runs of a ladder by eta / B^p.
std::vector<Family> families(const RunSet& set, const Ladder& ladder, double power) {
  std::vector<std::pair<double, size_t>> ratios;
  for (const Level& level : ladder.levels) {
    for (const size_t run : level.runs) {
      const double ratio = set.value(Axis::kLearningRate, run) / std::pow(level.value, power);
      if (ratio > 0 && std::isfinite(ratio)) ratios.emplace_back(ratio, run);
    }
  }
  std::sort(ratios.begin(), ratios.end());
  std::vector<Family> result;
  for (const auto& [ratio, run] : ratios) {
    if (result.empty() || ratio > result.back().ratio * (1 + kSameRatio)) {
      result.push_back({ratio, {}});
    }
    result.back().level[set.value(Axis::kBatchSize, run)].push_back(run);
  }
  result.erase(std::remove_if(result.begin(), result.end(),
                              [](const Family& family) { return family.level.size() < 2; }),
               result.end());
  return result;
}

/// Are 1 - beta1 and 1 - beta2 proportional to the batch size, to 5 %?
bool betas_scaled(const RunSet& set, const Family& family) {
  const auto settings = [&](size_t run) -> const v1::ParameterGroup* {
    const v1::OptimizerSettings& optimizer = set.runs()[run].optimizer;
    return optimizer.group_size() > 0 ? &optimizer.group(0) : nullptr;
  };
  const v1::ParameterGroup* first = settings(family.level.begin()->second.front());
  if (first == nullptr) return false;
  for (const auto& [batch, runs] : family.level) {
    const double k = batch / family.level.begin()->first;
    for (const size_t run : runs) {
      const v1::ParameterGroup* group = settings(run);
      if (group == nullptr) return false;
      if (std::fabs((1 - group->beta1()) / (k * (1 - first->beta1())) - 1) > 0.05) return false;
      if (std::fabs((1 - group->beta2()) / (k * (1 - first->beta2())) - 1) > 0.05) return false;
    }
  }
  return true;
}

class BatchTransfer : public ComparisonLaw {
 public:
  const LawDescription& description() const override { return law(); }

  std::vector<ComparisonFinding> findings(const RunSet& set) const override {
    std::vector<ComparisonFinding> all;
    std::set<std::string> free = {"learning rate", "beta1", "beta2", "epsilon"};
    for (const Difference& difference : set.differences()) {
      for (const char* name : {"learning rate of", "beta1 of", "beta2 of", "epsilon of"}) {
        if (difference.name.rfind(name, 0) == 0) free.insert(difference.name);
      }
    }
    for (const Ladder& ladder : set.ladders(Axis::kBatchSize, free)) {
      const std::string& optimizer = set.runs()[ladder.levels.front().runs.front()].run.optimizer();
      const double power = rule(optimizer);
      if (power == 0) continue;
      for (Family& family : families(set, ladder, power)) {
        all.push_back(judge_family(set, ladder, family, optimizer));
      }
    }
    if (all.empty()) {
      all.push_back(not_applicable(
          law(),
          "no two runs whose batch sizes and learning rates differ by the rule of SGD or Adam"));
    }
    return all;
  }

 private:
  static ComparisonFinding judge_family(const RunSet& set, const Ladder& ladder, Family& family,
                                        const std::string& optimizer) {
    std::vector<std::string> sizes;
    std::vector<size_t> runs;
    for (const auto& [batch, of] : family.level) {
      sizes.push_back(axis_number(batch));
      runs.insert(runs.end(), of.begin(), of.end());
    }
    const double power = rule(optimizer);
    const std::string sweep =
        fmt::format("batch sizes {} with {} and learning rate {} {}{}{}", enumerate(sizes),
                    optimizer, format_number(family.ratio), power == 1 ? "B" : "sqrt(B)",
                    ladder.label.empty() ? "" : ", ", ladder.label);
    ComparisonFinding finding = start_comparison(law(), "runs", sweep);
    finding.unit = "seed noises";
    std::string noise_said = "the noise scale was not measured";
    double noise = kUnknown;
    double at_least = kUnknown;
    for (const size_t run : runs) {
      const trace::PooledNoiseScale& scale = set.runs()[run].noise_scale;
      if (std::isfinite(scale.value) && !(noise <= scale.value)) noise = scale.value;
      if (std::isfinite(scale.low) && !(at_least <= scale.low)) at_least = scale.low;
    }
    if (std::isnan(noise) && std::isfinite(at_least))
      noise_said = fmt::format("noise scale at least {} at the end", format_number(at_least));
    if (std::isfinite(noise)) {
      noise_said = fmt::format("noise scale {} at the end", format_number(noise));
      for (auto level = family.level.begin(); level != family.level.end();) {
        level =
            level->first > kNoiseDominated * noise ? family.level.erase(level) : std::next(level);
      }
      if (family.level.size() < 2) {
        set_verdict(finding, Verdict::kNotApplicable);
        finding.gate = fmt::format(
            "fewer than two of the batch sizes are below half of the noise scale, {} at the end: "
            "steps "
            "are not dominated by noise, and the rule is not expected to hold",
            format_number(noise));
        return finding;
      }
    }
    finding.gate = noise_said;
    if (power == 0.5) {
      finding.gate += betas_scaled(set, family)
                          ? "; betas scaled with the batch size"
                          : "; the betas were not scaled with the batch size, as the rule "
                            "requires";
    }
    judge_curves(set, family, &finding);
    return finding;
  }

  static void judge_curves(const RunSet& set, const Family& family, ComparisonFinding* finding) {
    std::vector<size_t> runs;
    for (const auto& [batch, of] : family.level) runs.insert(runs.end(), of.begin(), of.end());
    const std::string statistic = loss_statistic(set, runs);
    finding->evidence_statistic = statistic;
    std::vector<std::vector<Curve>> curves;  // by level
    std::vector<Curve> all;
    for (const auto& [batch, of] : family.level) {
      curves.emplace_back();
      for (const size_t run : of) {
        Curve curve = smooth_curve(set.runs()[run], statistic);
        if (curve.empty()) continue;
        curves.back().push_back(curve);
        all.push_back(std::move(curve));
      }
    }
    const double begin = std::max(common_begin(all, Alignment::kExamples),
                                  kFirstSteps * family.level.rbegin()->first);
    const double end = common_end(all, Alignment::kExamples);
    const bool levels =
        std::all_of(curves.begin(), curves.end(), [](const auto& level) { return !level.empty(); });
    if (!levels || !(end > 2 * begin)) {
      set_verdict(*finding, Verdict::kNotYet);
      finding->gate += "; the runs have too few examples in common";
      return;
    }
    double highest = -std::numeric_limits<double>::infinity();
    double lowest = std::numeric_limits<double>::infinity();
    // By stretch, level and run: the mean loss of the stretch.
    std::vector<std::vector<std::vector<double>>> mean(kStretches);
    for (int s = 0; s < kStretches; ++s) {
      for (const auto& level : curves) {
        mean[static_cast<size_t>(s)].emplace_back();
        for (const Curve& curve : level) {
          double sum = 0;
          for (int i = 0; i < kPointsPerStretch; ++i) {
            const double at = (s + (i + 0.5) / kPointsPerStretch) / kStretches;
            const double x = begin * std::pow(end / begin, at);
            sum += curve.at(x, Alignment::kExamples) / kPointsPerStretch;
          }
          highest = std::max(highest, sum);
          lowest = std::min(lowest, sum);
          mean[static_cast<size_t>(s)].back().push_back(sum);
        }
      }
    }
    judge_stretches(mean, kFloor * (highest - lowest), begin, end, finding);
  }

  static void judge_stretches(const std::vector<std::vector<std::vector<double>>>& mean,
                              double floor, double begin, double end, ComparisonFinding* finding) {
    const size_t levels = mean[0].size();
    const double comparisons = static_cast<double>(kStretches) * static_cast<double>(levels - 1);
    double worst = -1;
    double worst_half = 0;
    double largest = 0;
    double worst_at = 0;
    bool all_within = true;
    bool any_outside = false;
    double freedom = 0;
    for (int s = 0; s < kStretches; ++s) {
      const auto& stretch = mean[static_cast<size_t>(s)];
      double square = 0;
      freedom = 0;
      for (const auto& level : stretch) {
        const double centre = average(level);
        for (const double value : level) square += (value - centre) * (value - centre);
        freedom += static_cast<double>(level.size()) - 1;
      }
      // Two seed noises, or what the bins can tell apart.
      const double noise =
          std::max(freedom > 0 ? std::sqrt(square / freedom) : 0.0, floor / kSeedNoises);
      const double t = student_t_quantile(1 - 0.05 / comparisons, freedom);
      for (size_t level = 1; level < levels; ++level) {
        const double off = std::fabs(average(stretch[level]) - average(stretch[0]));
        largest = std::max(largest, off);
        if (!(freedom > 0)) continue;
        const double half = t * std::sqrt(1.0 / static_cast<double>(stretch[0].size()) +
                                          1.0 / static_cast<double>(stretch[level].size()));
        const double measured = off / noise;
        all_within = all_within && measured <= kSeedNoises && measured + half < kExcludedNoises;
        any_outside = any_outside || measured - half > kSeedNoises;
        if (measured > worst) {
          worst = measured;
          worst_half = half;
          worst_at = begin * std::pow(end / begin, (s + 0.5) / kStretches);
        }
      }
    }
    finding->predicted = 0;
    if (!(freedom > 0)) {
      finding->measured = largest;
      finding->unit = "loss";
      set_verdict(*finding, Verdict::kUnderpowered);
      finding->gate += "; the noise is not known without a second seed at some batch size";
      finding->advice =
          "The curves cannot be compared with the noise between seeds: run one batch size again "
          "with another seed.";
      return;
    }
    finding->measured = worst;
    finding->ci_low = std::max(0.0, worst - worst_half);
    finding->ci_high = worst + worst_half;
    set_verdict(*finding, any_outside  ? Verdict::kViolated
                          : all_within ? Verdict::kHolds
                                       : Verdict::kUnderpowered);
    finding->gate += fmt::format("; largest difference near {} examples", format_number(worst_at));
    if (finding->verdict == Verdict::kViolated) {
      finding->advice =
          "The loss over examples depends on the batch size though the learning rate was scaled by "
          "the rule: do not carry it over to the largest batch size. It is likely above the "
          "critical one: raise the learning rate less, or stay at a smaller batch.";
    } else if (finding->verdict == Verdict::kHolds) {
      finding->advice =
          "The rule holds between these batch sizes: when the batch size changes, scale the "
          "learning rate by the rule without further tuning.";
      finding->importance = 0.5;
    } else {
      finding->advice = "More seeds are needed to tell whether the rule holds.";
      finding->importance = 0.28;
    }
  }

  static double average(const std::vector<double>& values) {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  }
};

}  // namespace

std::unique_ptr<ComparisonLaw> make_batch_transfer() { return std::make_unique<BatchTransfer>(); }

}  // namespace tycho::analyzer
