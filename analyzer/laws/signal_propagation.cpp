// Backward through h_{l+1} = W_{l+1} phi(h_l) + b with random W independent of the gradients:
//   E d_l^2 = E phi'(h_l)^2 * (|W_{l+1}|_F^2 / n_l) * E d_{l+1}^2,
// which is chi_1 of the mean-field theory with the actual weights and, for h_l Gaussian, the
// measured q_l = E h_l^2. Per edge this predicts the ratio of gradient RMS; over a chain, the slope
// of log RMS(d_l) against depth. Level and slope over the whole depth are compared at the first
// step only: training makes weights and gradients dependent.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>

#include "laws/availability.h"
#include "laws/law_support.h"
#include "laws/laws.h"

namespace tycho::analyzer {
namespace {

constexpr size_t kFewestEdges = 4;
constexpr double kTolerance = 0.1;  // of the slope, in log RMS per layer
constexpr double kOutlierSigmas = 4;
constexpr double kTroubleSlope = 0.25;  // a decade of gradient in about ten layers

const LawDescription& law() {
  static const LawDescription description = {
      "signal_propagation",
      "Signal propagation at initialization",
      Line::kSimplifyingLimits,
      "slope of log RMS(dL/dh_l) over depth = -(1/2) mean log chi_l, chi_l = |W_l|^2/n_in "
      "E[phi'(h)^2]",
      "First step; a chain of at least 5 linear layers with a known nonlinearity (ReLU, GELU, "
      "SiLU, "
      "tanh, sigmoid, none), no residual or normalisation in between; widths much larger than "
      "depth",
      "If gradients grow or vanish with depth, rescale the initial weights so that chi is 1 (He "
      "for ReLU), or add normalisation; a single layer off the line is initialised differently",
      "Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232",
      {"activation_grad_rms", "activation_rms", "weight_norm_sq"},
      {"Finite width: log gradients fluctuate with variance of about depth / width."}};
  return description;
}

/// E phi'(sqrt(q) z)^2 over a standard normal z, by the trapezoidal rule (the integrand decays as a
/// Gaussian); NaN for an unknown nonlinearity.
double mean_squared_derivative(const std::string& nonlinearity, double q) {
  if (nonlinearity.empty()) return 1;
  const auto is = [&](const char* name) {
    return nonlinearity == name || nonlinearity == std::string("aten::") + name ||
           nonlinearity == std::string("aten::") + name + "_";
  };
  // Where the derivative jumps or is scale-free, in closed form.
  if (is("relu")) return 0.5;
  double (*derivative)(double) = nullptr;
  if (is("tanh")) {
    derivative = [](double h) { return 1 - std::tanh(h) * std::tanh(h); };
  } else if (is("sigmoid")) {
    derivative = [](double h) {
      const double s = 1 / (1 + std::exp(-h));
      return s * (1 - s);
    };
  } else if (is("gelu")) {
    // Of the exact one; the tanh approximation differs by less than 0.1 %.
    derivative = [](double h) {
      constexpr double kRootTwoPi = 2.5066282746310002;
      return 0.5 * std::erfc(-h / std::sqrt(2.0)) + h * std::exp(-h * h / 2) / kRootTwoPi;
    };
  } else if (is("silu")) {
    derivative = [](double h) {
      const double s = 1 / (1 + std::exp(-h));
      return s * (1 + h * (1 - s));
    };
  } else {
    return kUnknown;
  }
  constexpr double kRange = 8;
  constexpr int kIntervals = 400;
  const double step = 2 * kRange / kIntervals;
  double sum = 0;
  for (int i = 0; i <= kIntervals; ++i) {
    const double z = -kRange + i * step;
    const double value = derivative(std::sqrt(q) * z);
    sum += value * value * std::exp(-z * z / 2);
  }
  constexpr double kTwoPi = 6.283185307179586;
  return sum * step / std::sqrt(kTwoPi);
}

bool is_linear(const std::string& operator_name) {
  return operator_name == "aten::linear" || operator_name == "aten::addmm" ||
         operator_name == "aten::mm" || operator_name == "aten::matmul" ||
         operator_name == "linear";
}

/// "leaky_relu" of "aten::leaky_relu_".
std::string bare(const std::string& operator_name) {
  const size_t colons = operator_name.rfind("::");
  std::string name = colons == std::string::npos ? operator_name : operator_name.substr(colons + 2);
  while (!name.empty() && name.back() == '_') name.pop_back();
  return name;
}

struct Edge {
  uint32_t from = 0;
  uint32_t to = 0;
  uint32_t weight = 0;  // parameter of `to`
  double fan_in = 0;    // of `to`
  double width = 0;     // the smaller fan of `to`
  std::string nonlinearity;
};

class SignalPropagation : public Law {
 public:
  const LawDescription& description() const override { return law(); }

  void begin(const RunContext& context) override {
    context_ = &context;
    gradient_ = context.column("activation_grad_rms", v1::SCOPE_LAYER);
    activation_ = context.column("activation_rms", v1::SCOPE_LAYER);
    weight_ = context.column("weight_norm_sq", v1::SCOPE_PARAMETER);
    scope_.clear();
    for (const v1::Layer& layer : context.model().layer()) {
      scope_.push_back(context.scope_name(v1::SCOPE_LAYER, layer.id()));
    }
    if (context.structure() == nullptr) return;
    chain_ = longest_chain(context);
    if (captured_) evaluate();
  }

  void observe(const Frame& frame) override {
    if (captured_ || missed_) return;
    if (frame.step() > 0) {
      missed_ = true;
      return;
    }
    const ColumnValues gradient = frame.column(gradient_);
    const ColumnValues activation = frame.column(activation_);
    const ColumnValues weight = frame.column(weight_);
    if (!gradient.present || !activation.present || !weight.present) return;
    step_ = frame.step();
    gradient_rms_.assign(gradient.value, gradient.value + gradient.size);
    activation_rms_.assign(activation.value, activation.value + activation.size);
    weight_norm_sq_.assign(weight.value, weight.value + weight.size);
    captured_ = true;
    evaluate();
  }

  std::vector<Finding> findings() const override {
    Finding run = start_finding(law(), "run");
    run.unit = "log RMS per layer";
    run.evidence_statistic = "activation_grad_rms";
    if (!evaluated_) {
      if (!captured_ && (!missed_ || !context_->recorded("activation_grad_rms"))) {
        set_not_measured(run, *context_, "activations and their gradients were",
                         {"activation_grad_rms"});
      } else if (!captured_) {
        set_verdict(run, Verdict::kNotMeasured);
        run.gate =
            "gradients and activations of step 0 were not recorded: the session began later, or "
            "its options excluded that step";
      } else {
        std::string gate = "no chain of 5 linear layers with known nonlinearities was found";
        if (!broken_by_.empty()) {
          gate += "; unknown operators: ";
          for (auto it = broken_by_.begin(); it != broken_by_.end(); ++it)
            gate += (it == broken_by_.begin() ? "" : ", ") + *it;
        }
        set_not_applicable(run, gate);
      }
      return {run};
    }
    run.window_begin = step_;
    run.window_end = step_;
    run.predicted = predicted_slope_;
    set_measured(run, slope_);
    const double low = predicted_slope_ - kTolerance;
    const double high = predicted_slope_ + kTolerance;
    set_verdict(run, judge_band(slope_, low, high));
    run.gate = fmt::format("chain of {} layers; {}", chain_.size() + 1, law().assumptions);
    if (run.verdict == Verdict::kHolds && std::fabs(slope_.value) > kTroubleSlope) {
      const double factor = std::exp(-slope_.value * static_cast<double>(chain_.size()));
      run.importance = 0.7;
      run.advice = fmt::format(
          "Gradients change by a factor {} from the last to the first of {} layers: scale the "
          "initial "
          "weights by {} (to chi = 1), or add normalisation.",
          format_number(factor), chain_.size() + 1, format_number(std::exp(slope_.value)));
    } else if (run.verdict == Verdict::kViolated) {
      run.advice =
          "Gradients do not follow the weights and nonlinearities: look for a layer off the line, "
          "a "
          "detached branch or weights that are not random.";
    }
    std::vector<Finding> result = {run};
    for (size_t i = 0; i < chain_.size(); ++i) result.push_back(judge_edge(i));
    return result;
  }

 private:
  /// Layers that feed exactly one layer through at most one operator, and are fed by one.
  /// What broke others is noted in `broken_by_`: convolutions, whose borders and strides are not
  /// in the theory, and nonlinearities without a formula or with a parameter that is not recorded,
  /// as the slope of a leaky ReLU.
  std::vector<Edge> longest_chain(const RunContext& context) {
    broken_by_.clear();
    const v1::ModelStructure& structure = *context.structure();
    std::map<uint32_t, const v1::LayerFact*> fact;
    for (const v1::LayerFact& f : structure.fact()) fact[f.layer()] = &f;
    std::map<uint32_t, int> outgoing;
    std::map<uint32_t, int> incoming;
    for (const v1::LayerEdge& edge : structure.edge()) {
      ++outgoing[edge.from()];
      ++incoming[edge.to()];
    }
    std::map<uint32_t, Edge> next;
    for (const v1::LayerEdge& edge : structure.edge()) {
      if (outgoing[edge.from()] != 1 || incoming[edge.to()] != 1 || edge.via_size() > 1) continue;
      const auto from = fact.find(edge.from());
      const auto to = fact.find(edge.to());
      if (from == fact.end() || to == fact.end()) continue;
      const std::string& first = from->second->operator_name();
      const std::string& second = to->second->operator_name();
      if (!is_linear(first) || !is_linear(second)) {
        broken_by_.insert(bare(is_linear(first) ? second : first));
        continue;
      }
      Edge result;
      result.from = edge.from();
      result.to = edge.to();
      result.nonlinearity = edge.via_size() == 1 ? edge.via(0) : "";
      if (std::isnan(mean_squared_derivative(result.nonlinearity, 1))) {
        broken_by_.insert(bare(result.nonlinearity));
        continue;
      }
      bool has_weight = false;
      for (const uint32_t id : context.model().layer(static_cast<int>(edge.to())).parameter()) {
        const v1::Parameter& parameter = context.model().parameter(static_cast<int>(id));
        if (parameter.shape_size() != 2) continue;
        result.weight = id;
        has_weight = true;
      }
      result.fan_in = static_cast<double>(to->second->fan_in());
      result.width = std::min(result.fan_in, static_cast<double>(to->second->fan_out()));
      if (has_weight && result.fan_in > 0) next[edge.from()] = result;
    }
    std::vector<Edge> longest;
    for (const auto& [start, first] : next) {
      std::vector<Edge> chain;
      for (auto it = next.find(start); it != next.end() && chain.size() < next.size();
           it = next.find(it->second.to)) {
        chain.push_back(it->second);
      }
      if (chain.size() > longest.size()) longest = chain;
    }
    return longest;
  }

  void evaluate() {
    evaluated_ = false;
    if (chain_.size() < kFewestEdges) return;
    // Depth 0 is the first layer of the chain; the profile is log RMS relative to it.
    std::vector<double> measured = {0};
    std::vector<double> predicted = {0};
    residual_.clear();
    for (const Edge& edge : chain_) {
      const double from = at(gradient_rms_, edge.from);
      const double to = at(gradient_rms_, edge.to);
      const double q = at(activation_rms_, edge.from) * at(activation_rms_, edge.from);
      const double chi = at(weight_norm_sq_, edge.weight) / edge.fan_in *
                         mean_squared_derivative(edge.nonlinearity, q);
      const double rise = std::log(to / from);
      const double expected = -0.5 * std::log(chi);
      if (!std::isfinite(rise) || !std::isfinite(expected)) return;
      residual_.push_back(rise - expected);
      measured.push_back(measured.back() + rise);
      predicted.push_back(predicted.back() + expected);
    }
    predicted_slope_ = slope(predicted);
    slope_ = Estimate();
    slope_.value = slope(measured);
    // Residuals of single edges are independent to leading order in 1/width; the slope of their sum
    // weights edge e, of n edges, by w_e = 6 e (n + 1 - e) / (n (n+1) (n+2)), which adds up to 1.
    const double n = static_cast<double>(residual_.size());
    double mean = 0;
    for (const double r : residual_) mean += r / n;
    double variance = 0;
    for (const double r : residual_) variance += (r - mean) * (r - mean) / (n - 1);
    double weight_sq = 0;
    for (size_t e = 1; e <= residual_.size(); ++e) {
      const double x = static_cast<double>(e);
      const double weight = 6 * x * (n + 1 - x) / (n * (n + 1) * (n + 2));
      weight_sq += weight * weight;
    }
    slope_.standard_error = std::sqrt(variance * weight_sq);
    slope_.degrees_of_freedom = n - 1;
    slope_.observations = residual_.size();
    slope_.blocks = residual_.size();
    slope_.reliable = true;
    const double half = student_t_quantile(0.95, slope_.degrees_of_freedom) * slope_.standard_error;
    slope_.low = slope_.value - half;
    slope_.high = slope_.value + half;
    evaluated_ = true;
  }

  /// An edge is judged by its distance from the median of all edges, in units of the larger of the
  /// spread of the others and the fluctuation expected of finite width.
  Finding judge_edge(size_t i) const {
    Finding finding = start_finding(law(), scope_[chain_[i].to]);
    finding.unit = "log RMS ratio";
    finding.evidence_statistic = "activation_grad_rms";
    finding.window_begin = step_;
    finding.window_end = step_;
    std::vector<double> sorted = residual_;
    std::sort(sorted.begin(), sorted.end());
    const double median = sorted[sorted.size() / 2];
    for (double& r : sorted) r = std::fabs(r - median);
    std::sort(sorted.begin(), sorted.end());
    constexpr double kMadToSigma = 1.4826;
    const double finite_width = std::sqrt(5 / chain_[i].width) / 2;
    const double sigma = std::max(kMadToSigma * sorted[sorted.size() / 2], finite_width);
    const double deviation = residual_[i] - median;
    finding.measured = residual_[i];
    finding.predicted = median;
    finding.ci_low = residual_[i] - kOutlierSigmas * sigma;
    finding.ci_high = residual_[i] + kOutlierSigmas * sigma;
    finding.confidence = 0.9999;
    const bool outlier = std::fabs(deviation) > kOutlierSigmas * sigma;
    finding.gate = "distance from the other layers, in their spread";
    set_verdict(finding, outlier ? Verdict::kViolated : Verdict::kHolds);
    finding.p_value = std::erfc(std::fabs(deviation) / sigma / std::sqrt(2.0));
    if (outlier) {
      finding.advice = fmt::format(
          "The gradient changes by a factor {} more than weights and nonlinearity explain: a "
          "different "
          "initialization, a missing normalisation or a detached branch?",
          format_number(std::exp(std::fabs(deviation))));
    }
    return finding;
  }

  static double at(const std::vector<double>& values, uint32_t index) {
    return index < values.size() ? values[index] : kUnknown;
  }

  static double slope(const std::vector<double>& y) {
    const double middle = (static_cast<double>(y.size()) - 1) / 2;
    double numerator = 0;
    double denominator = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const double x = static_cast<double>(i) - middle;
      numerator += x * y[i];
      denominator += x * x;
    }
    return numerator / denominator;
  }

  const RunContext* context_ = nullptr;
  ColumnIndex gradient_ = kNoColumn;
  ColumnIndex activation_ = kNoColumn;
  ColumnIndex weight_ = kNoColumn;
  std::vector<std::string> scope_;
  std::vector<Edge> chain_;
  std::set<std::string> broken_by_;  // operators through which nothing is predicted
  bool captured_ = false;
  bool missed_ = false;
  bool evaluated_ = false;
  int64_t step_ = -1;
  std::vector<double> gradient_rms_;
  std::vector<double> activation_rms_;
  std::vector<double> weight_norm_sq_;
  std::vector<double> residual_;  // by edge: measured log ratio minus predicted
  double predicted_slope_ = kUnknown;
  Estimate slope_;
};

}  // namespace

std::unique_ptr<Law> make_signal_propagation() { return std::make_unique<SignalPropagation>(); }

}  // namespace tycho::analyzer
