#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "not_observed.h"
#include "tycho/feature_pass.h"

namespace tycho {
namespace {

constexpr int64_t kMostModes = 256;
// Multiplications beyond which a map, or the best one, is not decomposed: about a second.
constexpr int64_t kLargest = int64_t{1} << 32;

bool too_large(int64_t rows, int64_t columns) {
  const int64_t smaller = std::min(rows, columns);
  return smaller > 0 && smaller > kLargest / std::max(rows, columns) / smaller;
}

/// What a network that is a chain of linear maps, W_L ... W_1, has learned (theory T2.6): the
/// singular values of the whole map, those of the map that fits the targets best, and how far
/// neighbouring layers are from balanced. Whether it is such a chain is seen on the probe batch:
/// every layer is a matrix that is used once, takes in what the one before gave out and nothing
/// else, has no bias or one that is zero, and the last gives out the network's output. Otherwise
/// nothing is recorded, which is said.
///
/// In float64 on the host: one singular value decomposition of the whole map at each observation,
/// and once a least-squares fit of the targets, where the loss is a squared error.
class LinearModesProbe : public Probe {
 public:
  std::string name() const override { return "linear_modes"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {
        define_statistic("mode_strength", "sigma_k(W_L ... W_1)", "1", {v1::SCOPE_INDEX},
                         "Singular values of the whole map of a network that is a chain of linear "
                         "layers, descending, at most 256.",
                         "Saxe, McClelland & Ganguli 2014"),
        define_statistic("target_mode_strength", "sigma_k(Y X^+)", "1", {v1::SCOPE_INDEX},
                         "Singular values of the linear map of least norm among those that fit "
                         "the targets of the probe batch best: the limit of mode_strength. "
                         "Equal in number.",
                         "Saxe, McClelland & Ganguli 2014"),
        define_statistic(
            "balance_residual", "|B|_F/(|W'|_F^2+|W|_F^2)", "1", {v1::SCOPE_LAYER},
            "|V'V - W W'|_F / (|V|_F^2 + |W|_F^2) with W the layer's weight and V that of the "
            "following layer: gradient flow conserves V'V - W W'.",
            "Arora, Cohen & Hazan 2018"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    if (step.features == nullptr) return nullptr;
    FeaturePass& pass = *step.features;
    std::vector<at::Tensor> weights;
    const std::string why_not = find_chain(pass, &weights);
    if (!why_not.empty()) return absent(why_not);
    at::Tensor whole = weights.front();
    for (size_t i = 1; i < weights.size(); ++i) whole = at::mm(weights[i], whole);
    if (!at::isfinite(whole).all().item<bool>()) {
      return [](const Arrived&, Recorder& recorder) {
        recorder.event(v1::Event::NON_FINITE, "linear_modes_not_finite",
                       "the map of the linear network is not finite: its modes are not recorded",
                       v1::SCOPE_RUN, 0);
      };
    }
    if (too_large(whole.size(0), whole.size(1))) return absent("it would take too long");
    std::vector<std::pair<uint32_t, double>> residuals;
    for (size_t i = 0; i + 1 < weights.size(); ++i) {
      const at::Tensor& lower = weights[i];
      const at::Tensor& upper = weights[i + 1];
      const double scale =
          lower.square().sum().item<double>() + upper.square().sum().item<double>();
      if (!(scale > 0)) continue;
      const at::Tensor difference = at::mm(upper.t(), upper) - at::mm(lower, lower.t());
      residuals.emplace_back(layers_[i], difference.norm().item<double>() / scale);
    }
    if (!pass.comparable()) best_.reset();
    if (!best_) best_ = best_map(pass, whole);
    return [modes = strengths(whole), best = *best_, residuals = std::move(residuals)](
               const Arrived&, Recorder& recorder) {
      const auto put = [&](const char* statistic, const std::vector<double>& values) {
        for (size_t k = 0; k < std::min(values.size(), modes.size()); ++k) {
          recorder.index(statistic, static_cast<uint32_t>(k), values[k], Recorder::kUnknown);
        }
      };
      put("mode_strength", modes);
      put("target_mode_strength", best);
      for (const auto& [layer, value] : residuals) {
        recorder.layer("balance_residual", layer, value, Recorder::kUnknown);
      }
    };
  }

 private:
  static Finish absent(const std::string& why_not) {
    return not_observed("linear_modes_not_observed",
                        "modes of a linear network are not recorded: " + why_not);
  }

  static at::Tensor wide(const at::Tensor& tensor) {
    return tensor.detach().to(at::kCPU, at::kDouble);
  }

  /// Whether two tensors hold the same numbers, whatever their shapes.
  static bool same(const at::Tensor& left, const at::Tensor& right) {
    return left.defined() && right.defined() && left.numel() == right.numel() &&
           left.scalar_type() == right.scalar_type() && left.device() == right.device() &&
           at::equal(left.reshape({-1}), right.reshape({-1}));
  }

  /// The chain's weights in the order in which they run, [out, in]; not empty: why there is none.
  std::string find_chain(FeaturePass& pass, std::vector<at::Tensor>* weights) {
    layers_.clear();
    const std::vector<LayerUse>& uses = pass.uses();
    std::vector<bool> used(model_.parameters.size());
    for (size_t i = 0; i < uses.size(); ++i) {
      const LayerUse& use = uses[i];
      const bool first = i == 0 || uses[i - 1].chunk != use.chunk;
      const bool last = i + 1 == uses.size() || uses[i + 1].chunk != use.chunk;
      const std::string& path = model_.layers[use.layer].path;
      if (use.op->kind() != LayerOperator::Kind::kLinear) return path + " is no linear layer";
      if (use.bias != LayerUse::kNone) {
        used[use.bias] = true;
        if (model_.parameters[use.bias].tensor.ne(0).any().item<bool>()) {
          return path + " has a bias";
        }
      }
      if (!first && !same(use.input, uses[i - 1].output)) {
        return "what " + path + " takes in is not what the layer before gives out";
      }
      if (last && pass.has_output() &&
          !same(pass.outputs()[static_cast<size_t>(use.chunk)], use.output)) {
        return "what " + path + " gives out is not the network's output";
      }
      if (use.chunk != uses.front().chunk) continue;
      if (used[use.weight]) return path + " is used twice";
      used[use.weight] = true;
      const at::Tensor matrix = use.op->matrix(model_.parameters[use.weight].tensor.detach());
      if (!matrix.defined()) return path + " is no matrix";
      if (!weights->empty() && weights->back().size(0) != matrix.size(1)) {
        return path + " does not fit the layer before";
      }
      weights->push_back(wide(matrix));
      layers_.push_back(use.layer);
    }
    if (weights->empty()) return "no layer was seen";
    for (const ParameterInfo& parameter : model_.parameters) {
      if (!used[parameter.id]) return parameter.name + " is not part of a chain of linear layers";
    }
    return {};
  }

  static std::vector<double> strengths(const at::Tensor& map) {
    const at::Tensor found = at::linalg_svdvals(map).contiguous();
    std::vector<double> values(found.data_ptr<double>(), found.data_ptr<double>() + found.numel());
    std::sort(values.rbegin(), values.rend());
    values.resize(std::min<size_t>(values.size(), kMostModes));
    return values;
  }

  /// Empty: no targets, or none that fit the inputs and the map. Chunks count as their losses,
  /// means over their examples, do.
  std::vector<double> best_map(FeaturePass& pass, const at::Tensor& whole) const {
    std::vector<at::Tensor> inputs, targets;
    for (const LayerUse& use : pass.uses()) {
      if (use.layer != layers_.front()) continue;
      const at::Tensor target = pass.targets(use.chunk);
      if (!target.defined()) return {};
      const at::Tensor x = wide(use.input).reshape({-1, whole.size(1)});
      if (target.numel() != x.size(0) * whole.size(0)) return {};
      const double weight = std::sqrt(std::max(pass.chunk_weight(use.chunk), 0.0) /
                                      static_cast<double>(std::max<int64_t>(x.size(0), 1)));
      inputs.push_back(x * weight);
      targets.push_back(wide(target).reshape({x.size(0), whole.size(0)}) * weight);
    }
    const at::Tensor x = at::cat(inputs);
    const at::Tensor y = at::cat(targets);
    if (x.numel() == 0 || too_large(x.size(0), x.size(1)) || !at::isfinite(x).all().item<bool>() ||
        !at::isfinite(y).all().item<bool>()) {
      return {};
    }
    return strengths(at::mm(at::linalg_pinv(x, 1e-10), y));
  }

  ModelInfo model_;
  std::vector<uint32_t> layers_;             // of the chain
  std::optional<std::vector<double>> best_;  // once it was looked for
};

}  // namespace

std::unique_ptr<Probe> make_linear_modes_probe() { return std::make_unique<LinearModesProbe>(); }

}  // namespace tycho
