#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "matrix/marchenko_pastur.h"
#include "matrix/power_law.h"

namespace tycho {
namespace {

// Multiplications in units of which a decomposition costs a few: about a second.
constexpr int64_t kLargestSpectrum = int64_t{1} << 32;

/// What the singular values of each layer's weights look like (theory, tier 3), exact, in float64
/// on the host: the effective rank, the noise that the bulk looks like, how many stand out of it,
/// and the exponent of the tail of squared singular values where that is a power law. Kernels are
/// matrices of one row for each index of their first dimension. Descriptive: none of these is a
/// prediction.
///
/// A layer with one matrix has layer values; where it has several, each has values as a parameter.
/// Matrices with more than 2^32 entries times the smaller side are absent, which is said.
class WeightSpectrumProbe : public Probe {
 public:
  std::string name() const override { return "weight_spectrum"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> scopes = {v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    return {
        define_statistic("effective_rank", "exp(-sum p ln p)", "1", scopes,
                         "Exponential of the entropy of p_i = s_i^2 / sum s^2, with s the singular "
                         "values of the weights. At parameter scope where a layer has several "
                         "matrices.",
                         "Roy & Vetterli 2007"),
        define_statistic("spectrum_edge", "s(sqrt N + sqrt M)", "1", scopes,
                         "Largest singular value that independent entries would have, with the "
                         "variance at which the median of the bulk is theirs.",
                         "Marchenko & Pastur 1967"),
        define_statistic("spectrum_spikes", "n_spikes", "1", scopes,
                         "Number of singular values beyond the edge by more than the largest "
                         "one of noise is with probability 1 %.",
                         "Johnstone 2001"),
        define_statistic("spectrum_bulk_distance", "KS", "1", scopes,
                         "Largest difference between the distribution of the squared singular "
                         "values that are not spikes and that of independent entries: if it is "
                         "not small, the bulk is not noise, and edge and spikes mean little.",
                         "Marchenko & Pastur 1967"),
        define_statistic("tail_exponent", "alpha", "1", scopes,
                         "Exponent of the density of large squared singular values, s^2 ~ "
                         "x^-alpha: maximum likelihood, with its standard error. Absent if the "
                         "tail is not a power law.",
                         "Clauset, Shalizi & Newman 2009; Martin & Mahoney 2021"),
        define_statistic("tail_distance", "KS", "1", scopes,
                         "Largest difference between the distribution of the tail and the "
                         "best-fitting power law, whether or not it is one.",
                         "Clauset, Shalizi & Newman 2009"),
    };
  }

  Needs needs() const override { return {}; }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    std::vector<int64_t> matrices(model_.layers.size());
    for (const ParameterInfo& parameter : model_.parameters) {
      matrices[parameter.layer] += is_matrix(parameter);
    }
    std::vector<std::function<void(Recorder&)>> records;
    for (const ParameterInfo& parameter : model_.parameters) {
      if (!is_matrix(parameter)) continue;
      const bool only = matrices[parameter.layer] == 1;
      const auto put = [only, id = parameter.id, layer = parameter.layer](
                           Recorder& recorder, const char* statistic, double value,
                           double standard_error = Recorder::kUnknown) {
        if (only) {
          recorder.layer(statistic, layer, value, standard_error);
        } else {
          recorder.parameter(statistic, id, value, standard_error);
        }
      };
      const auto say = [id = parameter.id](Recorder& recorder, v1::Event::Kind kind,
                                           const char* code, const std::string& message) {
        recorder.event(kind, code, message, v1::SCOPE_PARAMETER, id);
      };
      const at::Tensor matrix = parameter.tensor.detach().flatten(1);
      const int64_t smaller = std::min(matrix.size(0), matrix.size(1));
      const int64_t larger = std::max(matrix.size(0), matrix.size(1));
      if (smaller > kLargestSpectrum / larger / smaller) {
        records.push_back([say, name = parameter.name](Recorder& recorder) {
          say(recorder, v1::Event::NOT_OBSERVED, "weight_spectrum_too_large",
              "the spectrum of " + name + " is not recorded: it would take too long");
        });
        continue;
      }
      const at::Tensor host = matrix.to(at::kCPU, at::kDouble);
      if (!at::isfinite(host).all().item<bool>()) {
        records.push_back([say, name = parameter.name](Recorder& recorder) {
          say(recorder, v1::Event::NON_FINITE, "weight_spectrum_not_finite",
              "the spectrum of " + name + " is not recorded: it is not finite");
        });
        continue;
      }
      records.push_back([put, found = spectrum(host, larger, step.seed)](Recorder& recorder) {
        if (found.effective_rank) put(recorder, "effective_rank", *found.effective_rank);
        if (found.bulk) {
          put(recorder, "spectrum_edge", found.bulk->edge);
          put(recorder, "spectrum_spikes", static_cast<double>(found.bulk->spikes));
          put(recorder, "spectrum_bulk_distance", found.bulk->distance);
        }
        if (found.tail) put(recorder, "tail_distance", found.tail->distance);
        if (found.tail && found.is_power_law) {
          put(recorder, "tail_exponent", found.tail->exponent, found.tail->standard_error);
        }
      });
    }
    return [records = std::move(records)](const Arrived&, Recorder& recorder) {
      for (const auto& record : records) record(recorder);
    };
  }

 private:
  struct Spectrum {
    std::optional<double> effective_rank;
    std::optional<SpectrumBulk> bulk;
    std::optional<PowerLaw> tail;
    bool is_power_law = false;
  };

  static bool is_matrix(const ParameterInfo& parameter) {
    return parameter.tensor.dim() >= 2 && parameter.tensor.numel() > 0 &&
           parameter.tensor.layout() == at::kStrided && parameter.tensor.is_floating_point();
  }

  static Spectrum spectrum(const at::Tensor& matrix, int64_t larger, uint64_t seed) {
    Spectrum result;
    const double largest = matrix.abs().max().item<double>();
    if (largest == 0) return result;
    // In units in which squares stay in range.
    const at::Tensor found = at::linalg_svdvals(matrix / largest).contiguous();
    std::vector<double> values(found.data_ptr<double>(), found.data_ptr<double>() + found.numel());
    std::sort(values.rbegin(), values.rend());
    double sum = 0;
    for (const double value : values) sum += value * value;
    double entropy = 0;
    for (const double value : values) {
      const double share = value * value / sum;
      if (share > 0) entropy -= share * std::log(share);
    }
    result.effective_rank = std::exp(entropy);
    result.bulk = fit_bulk(values, larger);
    if (result.bulk) result.bulk->edge *= largest;
    std::vector<double> squares;
    // Below this they are what rounding left.
    const double rounding = 1e-12 * values.front();
    for (auto value = values.rbegin(); value != values.rend(); ++value) {
      if (*value > rounding) squares.push_back(*value * *value);
    }
    result.tail = fit_power_law(squares);
    if (result.tail) result.is_power_law = is_power_law(squares, *result.tail, seed);
    return result;
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_weight_spectrum_probe() {
  return std::make_unique<WeightSpectrumProbe>();
}

}  // namespace tycho
