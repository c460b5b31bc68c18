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
#include "tycho/feature_pass.h"

namespace tycho {
namespace {

/// How much of what the step's update could do to the layer's inputs it does: with 1, inputs lie
/// along the update's leading singular vector, as theory assumes (T1.8); of n inputs in random
/// directions about 1/sqrt(n) is left. On the probe batch. The update's spectral norm as
/// spectral_norms has it. Costs an application of each layer's operator to the probe batch.
class UpdateAlignmentProbe : public Probe {
 public:
  std::string name() const override { return "update_alignment"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic(
        "update_alignment", "|dW x|/(|dW|_2|x|)", "1", {v1::SCOPE_LAYER},
        "Norm of the contribution of the step's update to the layer's outputs on the probe "
        "batch, over the update's spectral norm times the norm of the inputs. For layers with "
        "one matrix.",
        "Yang, Simon & Bernstein 2023")};
  }

  Needs needs() const override {
    Needs needs;
    needs.previous_weights = needs.convolutions = needs.probe_features = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    if (step.features == nullptr) return nullptr;
    struct Layer {
      uint32_t parameter = 0;
      at::Tensor moved;  ///< |dW x|^2
      at::Tensor given;  ///< |x|^2
      bool fits = true;
      double scale = 0;
    };
    std::vector<Layer> layers;
    std::vector<GramMatrix> matrices;
    for (const ParameterInfo& parameter : model_.parameters) {
      const LayerInfo& owner = model_.layers[parameter.layer];
      const at::Tensor& before = (*step.parameters)[parameter.id].previous_weight;
      if (!before.defined() || before.sizes() != parameter.tensor.sizes()) continue;
      const ConvolutionGeometry& geometry = (*step.convolutions)[parameter.id];
      const auto matrix = WeightMatrix::of(parameter, owner, geometry);
      if (!matrix || !is_only_matrix(parameter)) continue;
      at::Tensor update =
          (parameter.tensor.detach().to(at::kDouble) - before.to(at::kDouble)).to(at::kCPU);
      const double largest = update.abs().max().item<double>();
      if (!(largest > 0) || !std::isfinite(largest)) continue;
      update.div_(largest);
      const at::Tensor entries =
          update.to(parameter.tensor.device(), parameter.tensor.scalar_type());
      Layer layer;
      layer.parameter = parameter.id;
      for (const LayerUse& use : step.features->uses()) {
        if (use.weight != parameter.id) continue;
        const bool table = use.op->kind() == LayerOperator::Kind::kEmbedding;
        if (use.op->kind() == LayerOperator::Kind::kScale) layer.fits = false;
        // A convolution is another matrix on inputs of another size.
        if (use.op->kind() == LayerOperator::Kind::kConvolution) {
          const auto sizes = use.input.sizes();
          layer.fits = layer.fits && sizes.size() > geometry.input.size() &&
                       std::equal(geometry.input.rbegin(), geometry.input.rend(), sizes.rbegin());
        }
        if (!layer.fits) break;
        const at::Tensor moved =
            use.op->apply(use.input, entries, at::Tensor()).to(at::kDouble).square().sum();
        const at::Tensor given =
            table ? at::full({}, static_cast<double>(use.input.numel()), moved.options())
                  : use.input.to(at::kDouble).square().sum();
        layer.moved = layer.moved.defined() ? layer.moved + moved : moved;
        layer.given = layer.given.defined() ? layer.given + given : given;
      }
      if (!layer.fits || !layer.moved.defined()) continue;
      const at::Tensor wide =
          entries.scalar_type() == at::kDouble ? entries : entries.to(at::kFloat);
      matrices.push_back(matrix->gram(wide));
      layers.push_back(std::move(layer));
    }
    const auto norms = largest_singular_values(matrices, {}, own_generator(step, 21));
    std::vector<std::pair<uint32_t, double>> values;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (!norms[i].finite || !(norms[i].value > 0)) continue;
      const double given = layers[i].given.item<double>();
      if (!(given > 0) || !std::isfinite(given)) continue;
      values.emplace_back(model_.parameters[layers[i].parameter].layer,
                          std::sqrt(layers[i].moved.item<double>() / given) / norms[i].value);
    }
    return [values = std::move(values)](const Arrived&, Recorder& recorder) {
      for (const auto& [layer, value] : values) {
        recorder.layer("update_alignment", layer, value, Recorder::kUnknown);
      }
    };
  }

 private:
  bool is_only_matrix(const ParameterInfo& parameter) const {
    const auto& all = model_.layers[parameter.layer].parameters;
    return std::count_if(all.begin(), all.end(),
                         [&](uint32_t id) { return model_.parameters[id].tensor.dim() >= 2; }) == 1;
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_update_alignment_probe() {
  return std::make_unique<UpdateAlignmentProbe>();
}

}  // namespace tycho
