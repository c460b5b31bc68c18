#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "curvature_support.h"
#include "matrix/largest_singular_values.h"
#include "matrix/weight_matrix.h"

namespace tycho {
namespace {

// With sums of squares between these, products with the Gram matrix neither overflow nor vanish in
// float32.
constexpr double kSmallest = 1e-16;
constexpr double kLargestMatrix = 1e16;

/// Largest singular values of weights, updates, and of what changed since the first observation, in
/// units of sqrt(outputs / inputs) (theory T1.8; WeightMatrix says what a layer's matrix is). By
/// Lanczos on the smaller Gram matrix, until the exact value is above by 2 % at most, with
/// probability 99 %; typically a tenth of that. At most 40 products, about 5 for an update and 15
/// for weights that are mostly noise; the error bound is recorded beside them.
///
/// A layer with one matrix has a layer value; where it has several (recurrent layers), each has a
/// value as a parameter. Keeps a copy of the weights of the first observation.
class SpectralNormsProbe : public Probe {
 public:
  std::string name() const override { return "spectral_norms"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    return {
        define_statistic(
            "weight_spectral_norm", "|W|_2 sqrt(n_in/n_out)", "1", scopes,
            "Largest singular value of the layer's matrix after the update, in units of "
            "sqrt(n_out/n_in). Convolutions are treated as operators on inputs of the size last "
            "seen, with n_in and n_out their numbers of inputs and outputs; an embedding has "
            "n_in = 1. At parameter scope where a layer has several matrices.",
            "Yang, Simon & Bernstein 2023"),
        define_statistic("update_spectral_norm", "|dW|_2 sqrt(n_in/n_out)", "1", scopes,
                         "The same for the step's update.", "Yang, Simon & Bernstein 2023"),
        since_first_observation(
            define_statistic("change_spectral_norm", "|W_t - W_0|_2 sqrt(n_in/n_out)", "1", scopes,
                             "The same for the change since the first observation.",
                             "Yang, Simon & Bernstein 2023")),
        define_statistic("stable_rank", "|W|_F^2/|W|_2^2", "1", scopes,
                         "Squared Frobenius norm over squared spectral norm of the weights: "
                         "between 1 and the rank.",
                         "Rudelson & Vershynin 2007"),
        define_statistic("spectral_norm_error", "d|.|_2/|.|_2", "1", scopes,
                         "Largest of the relative error bounds of the layer's spectral norms: "
                         "with probability 99 %, the exact norms are not below the recorded "
                         "ones, and above them by no more than this.",
                         "van Dorsselaer, Hochstenbach & van der Vorst 2001"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.previous_weights = needs.convolutions = true;
    return needs;
  }

  void setup(const ModelInfo& model) override {
    model_ = model;
    first_.resize(model.parameters.size());
  }

  Finish observe(const StepView& step, Transfer&) override {
    std::vector<Norm> norms = collect(step);
    scale(&norms);
    std::vector<GramMatrix> matrices;
    std::vector<Norm*> measured;
    for (Norm& norm : norms) {
      if (!norm.finite || norm.frobenius_sq == 0) continue;
      matrices.push_back(norm.matrix.gram(norm.entries));
      measured.push_back(&norm);
    }
    const std::vector<LargestSingularValue> found =
        largest_singular_values(matrices, {}, own_generator(step, 20));
    for (size_t i = 0; i < found.size(); ++i) {
      Norm& norm = *measured[i];
      norm.finite = found[i].finite;
      if (!norm.finite) continue;
      norm.value = found[i].value;
      norm.error = found[i].value > 0 ? found[i].error / found[i].value : 0;
    }
    for (Norm& norm : norms) norm.entries = at::Tensor();
    return [this, norms = std::move(norms)](const Arrived&, Recorder& recorder) {
      record(norms, recorder);
    };
  }

 private:
  enum Kind { kWeight, kUpdate, kChange };

  struct Norm {
    uint32_t parameter = 0;
    Kind kind = kWeight;
    bool only = true;  ///< the layer has no other matrix
    WeightMatrix matrix;
    at::Tensor entries;
    double scale = 1;         ///< the matrix is this times `entries`
    double frobenius_sq = 0;  ///< of `entries`
    double value = 0;         ///< spectral norm of `entries`
    double error = 0;         ///< relative
    bool finite = true;
  };

  std::vector<Norm> collect(const StepView& step) {
    std::vector<Norm> norms;
    std::vector<int64_t> matrices(model_.layers.size());
    static const ConvolutionGeometry unknown;
    for (const ParameterInfo& parameter : model_.parameters) {
      const auto matrix = WeightMatrix::of(
          parameter, model_.layers[parameter.layer],
          step.convolutions != nullptr ? (*step.convolutions)[parameter.id] : unknown);
      if (!matrix) continue;
      ++matrices[parameter.layer];
      at::Tensor& first = first_[parameter.id];
      const auto wide = [](const at::Tensor& tensor) {
        return tensor.scalar_type() == at::kDouble ? tensor : tensor.to(at::kFloat);
      };
      const auto add = [&](Kind kind, const at::Tensor& entries) {
        Norm norm;
        norm.parameter = parameter.id;
        norm.kind = kind;
        norm.matrix = *matrix;
        norm.entries = entries;
        norms.push_back(std::move(norm));
      };
      const at::Tensor now = wide(parameter.tensor.detach());
      const auto comparable = [&](const at::Tensor& other) {
        return other.defined() && other.sizes() == now.sizes() && other.device() == now.device();
      };
      add(kWeight, now);
      const at::Tensor& before = (*step.parameters)[parameter.id].previous_weight;
      if (comparable(before)) add(kUpdate, now - wide(before));
      if (comparable(first)) {
        add(kChange, now - wide(first));
      } else {
        first = parameter.tensor.detach().clone();
      }
    }
    for (Norm& norm : norms) norm.only = matrices[model_.parameters[norm.parameter].layer] == 1;
    return norms;
  }

  /// Frobenius norms, in one transfer for each device; entries whose squares would leave the range
  /// of float32 are divided by the largest.
  static void scale(std::vector<Norm>* norms) {
    const auto fetch = [](const std::vector<Norm*>& of, const auto& number) {
      std::vector<std::pair<at::Device, std::vector<size_t>>> devices;
      std::vector<double> values(of.size());
      for (size_t i = 0; i < of.size(); ++i) {
        const at::Device device = of[i]->entries.device();
        auto found = std::find_if(devices.begin(), devices.end(),
                                  [&](const auto& entry) { return entry.first == device; });
        if (found == devices.end()) found = devices.insert(devices.end(), {device, {}});
        found->second.push_back(i);
      }
      for (const auto& [device, members] : devices) {
        std::vector<at::Tensor> numbers;
        for (const size_t i : members) numbers.push_back(number(*of[i]).to(at::kDouble));
        const at::Tensor host = at::stack(numbers).to(at::kCPU);
        for (size_t i = 0; i < members.size(); ++i) {
          values[members[i]] = host.data_ptr<double>()[i];
        }
      }
      return values;
    };
    const auto squares = [](const Norm& norm) { return norm.matrix.frobenius_sq(norm.entries); };
    std::vector<Norm*> all;
    for (Norm& norm : *norms) all.push_back(&norm);
    const std::vector<double> sums = fetch(all, squares);
    std::vector<Norm*> extreme;
    for (size_t i = 0; i < all.size(); ++i) {
      all[i]->frobenius_sq = sums[i];
      if (!(sums[i] > kSmallest && sums[i] < kLargestMatrix)) extreme.push_back(all[i]);
    }
    if (extreme.empty()) return;
    const std::vector<double> largest =
        fetch(extreme, [](const Norm& norm) { return norm.entries.abs().max(); });
    std::vector<Norm*> scaled;
    for (size_t i = 0; i < extreme.size(); ++i) {
      extreme[i]->frobenius_sq = 0;
      extreme[i]->finite = std::isfinite(largest[i]);
      if (!extreme[i]->finite || largest[i] == 0) continue;
      extreme[i]->scale = largest[i];
      // In two parts: the inverse of a denormal number overflows.
      const double root = std::sqrt(largest[i]);
      extreme[i]->entries = extreme[i]->entries / root / root;
      scaled.push_back(extreme[i]);
    }
    if (scaled.empty()) return;
    const std::vector<double> again = fetch(scaled, squares);
    for (size_t i = 0; i < scaled.size(); ++i) scaled[i]->frobenius_sq = again[i];
  }

  void record(const std::vector<Norm>& norms, Recorder& recorder) const {
    constexpr const char* kNames[] = {"weight_spectral_norm", "update_spectral_norm",
                                      "change_spectral_norm"};
    double error = -1;  // none
    for (size_t i = 0; i < norms.size(); ++i) {
      const Norm& norm = norms[i];
      const auto put = [&](const char* statistic, double value) {
        if (norm.only) {
          const uint32_t layer = model_.parameters[norm.parameter].layer;
          recorder.layer(statistic, layer, value, Recorder::kUnknown);
        } else {
          recorder.parameter(statistic, norm.parameter, value, Recorder::kUnknown);
        }
      };
      const std::string name = kNames[norm.kind];
      if (norm.finite) {
        put(kNames[norm.kind],
            norm.value * norm.scale * std::sqrt(norm.matrix.inputs() / norm.matrix.outputs()));
        if (norm.kind == kWeight && norm.value > 0) {
          put("stable_rank", norm.frobenius_sq / (norm.value * norm.value));
        }
        error = std::max(error, norm.error);
      } else {
        recorder.event(v1::Event::NON_FINITE, name + "_not_finite",
                       name + " of " + model_.parameters[norm.parameter].name +
                           " is not finite: it is not recorded",
                       v1::SCOPE_PARAMETER, norm.parameter);
      }
      // The norms of a parameter stand one behind the other.
      const bool last = i + 1 == norms.size() || norms[i + 1].parameter != norm.parameter;
      if (last && error >= 0) put("spectral_norm_error", error);
      if (last) error = -1;
    }
  }

  ModelInfo model_;
  std::vector<at::Tensor> first_;  // weights at the first observation, by parameter id
};

}  // namespace

std::unique_ptr<Probe> make_spectral_norms_probe() {
  return std::make_unique<SpectralNormsProbe>();
}

}  // namespace tycho
