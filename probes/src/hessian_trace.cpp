#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

constexpr int64_t kSketch = 6;   // directions that are treated exactly
constexpr int64_t kSamples = 6;  // for what is left

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

/// Of the mean of independent samples.
double standard_error(const std::vector<double>& values) {
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  const auto count = static_cast<double>(values.size());
  return std::sqrt(squares / (count - 1) / count);
}

/// Trace of the Hessian of the probe loss by Hutch++ (Meyer et al. 2021): with P the projection on
/// the range of H S for kSketch random sign vectors S,
///   H = P H + H P - P H P + (1 - P) H (1 - P).
/// The trace of the first three is exact, that of the last is the mean of g'(1 - P) H (1 - P) g
/// over kSamples random sign vectors g, whose spread gives the standard error (5 degrees of
/// freedom: of a t distribution). Restricted to a layer's rows each term gives the trace of its
/// block, so layers sum to the run. 18 Hessian-vector products and memory of 3 kSketch vectors.
class HessianTraceProbe : public Probe {
 public:
  std::string name() const override { return "hessian_trace"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("hessian_trace", "tr H", "1",
                             {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER},
                             "Trace of the Hessian of the probe loss, and of the layer's block of "
                             "it: unbiased, with its standard error.",
                             "Meyer, Musco, Musco & Woodruff 2021")};
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr) return nullptr;
    const at::Generator generator = own_generator(step, 4);
    const int64_t sketch = std::min(kSketch, surface->dimension());

    std::vector<at::Tensor> sketched;
    for (int64_t i = 0; i < sketch; ++i) {
      sketched.push_back(surface->hessian_product(sign_vector(*surface, generator)));
    }
    // Rows are orthonormal; of a Hessian of lower rank some are arbitrary, which does no harm.
    const at::Tensor basis = std::get<0>(at::linalg_qr(at::stack(sketched, 1))).t().contiguous();
    std::vector<at::Tensor> products;
    for (int64_t i = 0; i < sketch; ++i) {
      products.push_back(surface->hessian_product(basis[i]));
    }
    const at::Tensor images = at::stack(products);  // rows: H q_i
    const at::Tensor inside = at::mm(basis, images.t());
    // tr_l(P H) + tr_l(H P) - tr_l(P H P), entry by entry.
    const at::Tensor exact = (basis * (2 * images - at::mm(inside, basis))).sum(0);
    std::vector<at::Tensor> samples;
    for (int64_t i = 0; i < kSamples; ++i) {
      const at::Tensor signs = sign_vector(*surface, generator);
      const at::Tensor image = surface->hessian_product(project(basis, signs));
      samples.push_back(signs * project(basis, image));
    }
    const at::Tensor diagonal_samples = at::stack(samples);
    Traces traces = collect(*surface, exact, diagonal_samples);
    return [this, traces](const Arrived&, Recorder& recorder) { record(traces, recorder); };
  }

 private:
  /// Exact part and samples, for each of the surface's blocks.
  struct Traces {
    std::vector<uint32_t> parameters;
    std::vector<double> exact;
    std::vector<std::vector<double>> samples;
  };

  static at::Tensor project(const at::Tensor& basis, const at::Tensor& vector) {
    return vector - at::mv(basis.t(), at::mv(basis, vector));
  }

  static Traces collect(const LossSurface& surface, const at::Tensor& exact,
                        const at::Tensor& samples) {
    std::vector<at::Tensor> sums;
    Traces result;
    for (const LossSurface::Block& block : surface.blocks()) {
      result.parameters.push_back(block.parameter);
      sums.push_back(exact.narrow(0, block.begin, block.size).sum(at::kDouble).reshape({1}));
      sums.push_back(samples.narrow(1, block.begin, block.size).sum({1}, false, at::kDouble));
    }
    const at::Tensor host = at::cat(sums).to(at::kCPU);
    const double* numbers = host.data_ptr<double>();
    for (size_t i = 0; i < result.parameters.size(); ++i) {
      result.exact.push_back(*numbers++);
      result.samples.emplace_back(numbers, numbers + kSamples);
      numbers += kSamples;
    }
    return result;
  }

  struct Sum {
    double exact = 0;
    std::vector<double> samples = std::vector<double>(kSamples, 0.0);
    bool any = false;
    void add(double more, const std::vector<double>& more_samples) {
      any = true;
      exact += more;
      for (size_t i = 0; i < samples.size(); ++i) samples[i] += more_samples[i];
    }
    double value() const { return exact + mean(samples); }
  };

  void record(const Traces& traces, Recorder& recorder) const {
    Sum run;
    std::vector<Sum> layers(model_.layers.size());
    for (size_t i = 0; i < traces.parameters.size(); ++i) {
      run.add(traces.exact[i], traces.samples[i]);
      if (traces.parameters[i] == LossSurface::kNoParameter) continue;
      layers[model_.parameters[traces.parameters[i]].layer].add(traces.exact[i], traces.samples[i]);
      recorder.parameter("hessian_trace", traces.parameters[i],
                         traces.exact[i] + mean(traces.samples[i]),
                         standard_error(traces.samples[i]));
    }
    for (size_t id = 0; id < layers.size(); ++id) {
      if (!layers[id].any) continue;
      recorder.layer("hessian_trace", static_cast<uint32_t>(id), layers[id].value(),
                     standard_error(layers[id].samples));
    }
    recorder.run("hessian_trace", run.value(), standard_error(run.samples));
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_hessian_trace_probe() { return std::make_unique<HessianTraceProbe>(); }

}  // namespace tycho
