#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "krylov/trace.h"
#include "tycho/product_error.h"

namespace tycho {
namespace {

/// Trace of the Hessian of the probe loss by Hutch++ (krylov/trace.h), whose samples give the
/// standard error (5 degrees of freedom: of a t distribution). Restricted to a layer's rows the
/// diagonal gives the trace of its block, so layers sum to the run. 18 Hessian-vector products and
/// the memory of 18 vectors; in up to 128 dimensions one product for each, and the trace is exact.
/// What products may be wrong by is part of the standard error.
class HessianTraceProbe : public Probe {
 public:
  std::string name() const override { return "hessian_trace"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("hessian_trace", "tr H", "1",
                             {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER},
                             "Trace of the Hessian of the probe loss, and of the layer's block of "
                             "it: unbiased, with its standard error; exact for up to 128 "
                             "parameters.",
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
    const DiagonalSamples diagonal =
        sample_diagonal([&](const at::Tensor& v) { return surface->hessian_product(v); },
                        surface->dimension(), [&] { return sign_vector(*surface, generator); });
    Traces traces = collect(*surface, diagonal.exact, diagonal.samples);
    traces.product_error = product_error_of(*surface);
    return [this, traces](const Arrived&, Recorder& recorder) { record(traces, recorder); };
  }

 private:
  /// Exact part and samples, for each of the surface's blocks.
  struct Traces {
    std::vector<uint32_t> parameters;
    std::vector<double> exact;
    std::vector<std::vector<double>> samples;
    double product_error = 0;
  };

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
      result.samples.emplace_back(numbers, numbers + kTraceSamples);
      numbers += kTraceSamples;
    }
    return result;
  }

  struct Sum {
    double exact = 0;
    std::vector<double> samples = std::vector<double>(kTraceSamples, 0.0);
    bool any = false;
    void add(double more, const std::vector<double>& more_samples) {
      any = true;
      exact += more;
      for (size_t i = 0; i < samples.size(); ++i) samples[i] += more_samples[i];
    }
    double value() const { return exact + mean(samples); }
    double error(double product_error) const {
      return std::hypot(standard_error(samples), product_error * value());
    }
  };

  void record(const Traces& traces, Recorder& recorder) const {
    Sum run;
    std::vector<Sum> layers(model_.layers.size());
    for (size_t i = 0; i < traces.parameters.size(); ++i) {
      run.add(traces.exact[i], traces.samples[i]);
      if (traces.parameters[i] == LossSurface::kNoParameter) continue;
      layers[model_.parameters[traces.parameters[i]].layer].add(traces.exact[i], traces.samples[i]);
      Sum own;
      own.add(traces.exact[i], traces.samples[i]);
      recorder.parameter("hessian_trace", traces.parameters[i], own.value(),
                         own.error(traces.product_error));
    }
    for (size_t id = 0; id < layers.size(); ++id) {
      if (!layers[id].any) continue;
      recorder.layer("hessian_trace", static_cast<uint32_t>(id), layers[id].value(),
                     layers[id].error(traces.product_error));
    }
    recorder.run("hessian_trace", run.value(), run.error(traces.product_error));
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_hessian_trace_probe() { return std::make_unique<HessianTraceProbe>(); }

}  // namespace tycho
