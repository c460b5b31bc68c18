// A layer changes its output by as much as it should, whatever its width, iff both its matrix and
// each update have a spectral norm of about sqrt(n_out/n_in) (Yang, Simon and Bernstein 2023): then
// RMS(h) and RMS(change of h) are of the order of 1 for all layers. Two tests in one run, of
//   r_W = |W|_2 sqrt(n_in/n_out)  and  r_D = |dW|_2 sqrt(n_in/n_out).
// The condition has no constants, initializations give them: independent entries of variance
// g^2/n_in have r_W = g (1 + sqrt(n_in/n_out)), from 0.9 (LibTorch's default, g = 1/sqrt(3), four
// times wider than what goes in) to 4.2 (He's, four times narrower), and orthogonal ones 1: a
// factor 10 around 1 leaves room. r_D goes with the learning rate's schedule, which is common to
// all layers, so that layers are compared with each other: a factor 10 from the median of the
// hidden layers is a layer whose learning rate or initialization does not fit its shape.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"
#include "src/statistics/recent_half.h"

namespace tycho::analyzer {
namespace {

constexpr double kFactor = 10;
constexpr size_t kFewestLayers = 3;

const LawDescription& law() {
  static const LawDescription description = {
      "spectral_condition",
      "Spectral condition on weights and updates",
      Line::kSimplifyingLimits,
      "r_W = |W|_2 sqrt(n_in/n_out) within a factor 10 of 1, and r_D = |dW|_2 sqrt(n_in/n_out) "
      "within a factor 10 of the median of the hidden layers",
      "At least 3 hidden layers (matrices that neither read the data nor produce the output); "
      "embeddings, first and last layer and vectors are described, not judged",
      "A layer far from its peers learns too fast or hardly at all: scale its initial weights, "
      "or its learning rate in a separate parameter group, towards them. A learning rate "
      "carries over to other widths only if the condition holds",
      "Yang, Simon and Bernstein 2023, arXiv:2310.17813",
      {"weight_spectral_norm", "update_spectral_norm"},
      {"It tests an order of magnitude: the theory has no constants. To see whether a learning "
       "rate carries over, compare widths.",
       "Gradients that vanish with depth look the same as an unsuitable learning rate."}};
  return description;
}

bool is_embedding(const v1::Layer& layer) {
  return layer.type().find("Embedding") != std::string::npos;
}

class SpectralCondition : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    weight_ = context.column("weight_spectral_norm", v1::SCOPE_LAYER);
    update_ = context.column("update_spectral_norm", v1::SCOPE_LAYER);
    const auto count = static_cast<size_t>(context.model().layer_size());
    weights_.resize(count, RecentHalf(1));
    updates_.resize(count, RecentHalf(1));
    relative_.resize(count, RecentHalf(1));
    still_.resize(count, 0);
    scope_.clear();
    embedding_.clear();
    vector_.assign(count, true);
    depth_.assign(count, 0);
    for (const v1::Layer& layer : context.model().layer()) {
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
      embedding_.push_back(is_embedding(layer));
      for (const uint32_t id : layer.parameter()) {
        if (context.model().parameter(static_cast<int>(id)).shape_size() >= 2)
          vector_[layer.id()] = false;
      }
      depth_[layer.id()] = layer.id();
    }
    if (context.structure() == nullptr) return;
    // In the order in which layers run, where that is known; else in the order of the model.
    for (const v1::LayerFact& fact : context.structure()->fact()) {
      if (fact.layer() < count) depth_[fact.layer()] = fact.depth();
    }
  }

  void observe(const Frame& frame) override {
    const ColumnValues weight = frame.column(weight_);
    const ColumnValues update = frame.column(update_);
    if (!weight.present && !update.present) return;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weight[i] > 0) weights_[i].add({std::log(weight[i])}, frame.step());
      if (update[i] > 0) updates_[i].add({std::log(update[i])}, frame.step());
      still_[i] += update[i] == 0;
      measured_ = measured_ || weight[i] > 0 || update[i] > 0;
    }
    const std::vector<size_t> hidden = hidden_layers();
    std::vector<double> sorted;
    for (const size_t i : hidden) {
      if (update[i] > 0) sorted.push_back(std::log(update[i]));
    }
    if (sorted.size() < kFewestLayers) return;
    std::sort(sorted.begin(), sorted.end());
    const size_t middle = sorted.size() / 2;
    const double median =
        sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
    for (const size_t i : hidden) {
      if (update[i] > 0) relative_[i].add({std::log(update[i]) - median}, frame.step());
    }
  }

  std::vector<Finding> findings() const override {
    Finding run = start_finding(law(), "run");
    run.unit = "largest over smallest r_D of the hidden layers";
    run.evidence_statistic = "update_spectral_norm";
    const std::vector<size_t> hidden = hidden_layers();
    if (!measured_ || hidden.size() < kFewestLayers) {
      if (measured_ || (context_->structure() != nullptr && matrices() < kFewestLayers)) {
        set_not_applicable(run, fmt::format("only {} hidden layers", hidden.size()));
      } else {
        set_not_measured(run, *context_, "spectral norms were", {"update_spectral_norm"});
      }
      return {run};
    }
    std::vector<Finding> result;
    std::string off;
    size_t violated = 0;
    size_t holding = 0;
    size_t judged = 0;
    double largest = -Estimate::kInfinity;
    double smallest = Estimate::kInfinity;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i].blocks().observations() == 0 && updates_[i].blocks().observations() == 0)
        continue;
      const bool judge_it = std::find(hidden.begin(), hidden.end(), i) != hidden.end();
      const Finding finding = judge_it ? judge_layer(i) : describe_layer(i);
      result.push_back(finding);
      if (!judge_it || finding.verdict == Verdict::kNotYet) continue;
      ++judged;
      holding += finding.verdict == Verdict::kHolds;
      if (finding.verdict == Verdict::kViolated) {
        ++violated;
        off += (off.empty() ? "" : ", ") + scope_[i];
      }
      if (updates_[i].blocks().observations() == 0) continue;
      const double level = relative_[i].blocks().mean({1}).value;
      largest = std::max(largest, level);
      smallest = std::min(smallest, level);
      run.window_begin = relative_[i].window_begin();
      run.window_end = relative_[i].window_end();
    }
    if (judged == 0) {
      run.gate = "too few observations";
    } else {
      run.measured = std::exp(largest - smallest);
      set_verdict(run, violated > 0        ? Verdict::kViolated
                       : holding == judged ? Verdict::kHolds
                                           : Verdict::kUnderpowered);
      run.gate = fmt::format("{} of {} hidden layers satisfy it", holding, judged);
      run.importance = violated > 0 ? 0.7 : run.importance;
      if (violated > 0)
        run.advice = "More than a factor 10 from their peers: " + off + ". See there.";
    }
    result.insert(result.begin(), run);
    return result;
  }

 private:
  /// Matrices between the first and the last; where an embedding takes in the data, all but the
  /// last.
  std::vector<size_t> hidden_layers() const {
    std::vector<size_t> order;
    bool embeds = false;
    for (size_t i = 0; i < weights_.size(); ++i) {
      embeds = embeds || embedding_[i];
      if (!embedding_[i] && !vector_[i] && weights_[i].blocks().observations() > 0)
        order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return depth_[a] < depth_[b]; });
    if (!order.empty()) order.pop_back();
    if (!order.empty() && !embeds) order.erase(order.begin());
    return order;
  }

  size_t matrices() const {
    return static_cast<size_t>(std::count(vector_.begin(), vector_.end(), false));
  }

  Finding judge_layer(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    finding.unit = "r_D over the median of the hidden layers";
    finding.evidence_statistic = "update_spectral_norm";
    const BlockAverages& relative = relative_[i].blocks();
    if (relative.observations() < 2 * BlockAverages::kMinBlocks) {
      finding.gate = relative.observations() == 0 && still_[i] > 0
                         ? "its updates are 0: it is frozen"
                         : only_observations(relative.observations());
      return finding;
    }
    finding.window_begin = relative_[i].window_begin();
    finding.window_end = relative_[i].window_end();
    const double limit = std::log(kFactor);
    const Estimate update = relative.mean({1});
    finding.measured = std::exp(update.value);
    finding.ci_low = std::exp(update.low);
    finding.ci_high = std::exp(update.high);
    finding.predicted = 1;
    const Estimate weight = weights_[i].blocks().mean({1});
    finding.gate = norms(i);
    // A slow drift within the band, or beyond it, is no matter.
    const bool fast = update.low > limit;
    const bool slow = update.high < -limit;
    const bool large = weight.low > limit;
    const bool small = weight.high < -limit;
    const bool inside = update.low >= -limit && update.high <= limit && weight.low >= -limit &&
                        weight.high <= limit;
    set_verdict(finding, fast || slow || large || small ? Verdict::kViolated
                         : inside                       ? Verdict::kHolds
                                                        : Verdict::kUnderpowered);
    finding.p_value = fast || slow     ? p_value(update, limit)
                      : large || small ? p_value(weight, limit)
                                       : 1;
    if (fast || slow) {
      finding.importance = 0.6;
      finding.advice = fmt::format(
          "Its updates are {} times those of its peers, relative to its shape: give it a "
          "parameter group with {} the learning rate{}.",
          format_number(finding.measured), format_number(1 / finding.measured),
          slow ? " (or are its gradients vanishing?)" : "");
    } else if (large || small) {
      finding.importance = 0.6;
      finding.advice = fmt::format(
          "Its weights are {} times what its shape calls for: they {} the signal. Scale the "
          "initial weights, or normalise.",
          format_number(std::exp(weight.value)), large ? "amplify" : "shrink");
    }
    return finding;
  }

  static double p_value(const Estimate& estimate, double limit) {
    const double beyond = std::fabs(estimate.value) - limit;
    if (!(estimate.standard_error > 0)) return 0;
    return student_t_tail(beyond / estimate.standard_error, estimate.degrees_of_freedom);
  }

  Finding describe_layer(size_t i) const {
    Finding finding = start_finding(law(), scope_[i]);
    set_verdict(finding, Verdict::kNotApplicable);
    finding.unit = "r_D";
    finding.evidence_statistic = "update_spectral_norm";
    if (updates_[i].blocks().observations() > 0)
      finding.measured = std::exp(updates_[i].blocks().mean({1}).value);
    finding.gate = fmt::format("{}: not compared with the hidden layers; {}",
                               embedding_[i] ? "an embedding"
                               : vector_[i]  ? "a vector"
                                             : "first or last layer",
                               norms(i));
    return finding;
  }

  std::string norms(size_t i) const {
    const auto level = [](const RecentHalf& series) {
      return series.blocks().observations() > 0
                 ? format_number(std::exp(series.blocks().mean({1}).value))
                 : std::string("not measured");
    };
    return fmt::format("r_W {}, r_D {}", level(weights_[i]), level(updates_[i]));
  }

  const RunContext* context_ = nullptr;
  ColumnIndex weight_ = kNoColumn;
  ColumnIndex update_ = kNoColumn;
  bool measured_ = false;
  std::vector<RecentHalf> weights_;   // log r_W
  std::vector<RecentHalf> updates_;   // log r_D
  std::vector<RecentHalf> relative_;  // log r_D over the median of the hidden layers
  std::vector<uint64_t> still_;       // observations of updates that are 0
  std::vector<std::string> scope_;
  std::vector<bool> embedding_;
  std::vector<bool> vector_;
  std::vector<uint64_t> depth_;
};

}  // namespace

std::unique_ptr<Law> make_spectral_condition() { return std::make_unique<SpectralCondition>(); }

}  // namespace tycho::analyzer
