#include <ATen/ATen.h>

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "feature_support.h"
#include "not_observed.h"

namespace tycho {
namespace {

/// Do the last features collapse to one point for each class, and these to a simplex (Papyan, Han &
/// Donoho 2020)? h is the input of the last linear layer that runs, W its weight, both on the probe
/// batch; mu_c are the means of h over the K classes that are there, M = [mu_c - mu] with mu the
/// mean of the mu_c. Run scope:
///   class_variability           tr(S_W S_B^+)/K, S_W = mean (h - mu_c)(h - mu_c)', S_B = MM'/K
///   (NC1) class_mean_norm_variation   standard deviation / mean of |mu_c - mu| (NC2)
///   class_mean_angle_deviation  mean over pairs of |cos + 1/(K - 1)| (NC2)
///   self_duality                |W'/|W| - M/|M||^2, Frobenius norms, W's rows of the classes that
///                               are there (NC3); 0 to 4
///   nearest_center_mismatch     share of examples whose largest output and whose nearest mu_c are
///                               different classes (NC4)
///   probe_error                 share of examples whose largest output is not their class
/// Needs ProbeLoss::labels, at least two classes, and one row of h for each label. NC1 to NC3 are
/// absent where all mu_c are the same. Costs K n p operations and a singular value decomposition
/// [p, K] beside the feature pass.
class NeuralCollapseProbe : public Probe {
 public:
  std::string name() const override { return "neural_collapse"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    const char* source = "Papyan et al. 2020";
    return {
        define_statistic("class_variability", "NC1", "1", run,
                         "tr(S_W S_B^+)/K of the last features on the probe batch: variability "
                         "within the K classes in units of that between them.",
                         source),
        define_statistic("class_mean_norm_variation", "NC2 norms", "1", run,
                         "Coefficient of variation of the norms of the centred class means of the "
                         "last features.",
                         source),
        define_statistic("class_mean_angle_deviation", "NC2 angles", "1", run,
                         "Mean |cos + 1/(K-1)| over pairs of centred class means of the last "
                         "features.",
                         source),
        define_statistic("self_duality", "NC3", "1", run,
                         "|W'/|W| - M/|M||^2 of the last linear layer's weight and the centred "
                         "class means.",
                         source),
        define_statistic("nearest_center_mismatch", "NC4", "1", run,
                         "Share of the probe batch on which the last layer and the nearest "
                         "class mean predict different classes.",
                         source),
        define_statistic("probe_error", "error", "1", run,
                         "Share of the probe batch whose largest output is not its class.", source),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr) return nullptr;
    std::string why;
    const auto batch = gather(*pass, &why);
    if (!batch) return absent(why);
    const at::Tensor labels = batch->labels;
    const int64_t outputs = batch->logits.size(1);
    if (labels.min().item<int64_t>() < 0 || labels.max().item<int64_t>() >= outputs) {
      return absent("labels are not among the last layer's outputs");
    }
    const at::Tensor counts = at::bincount(labels, {}, outputs);
    const at::Tensor present = counts.nonzero().reshape({-1});
    const int64_t classes = present.size(0);
    if (classes < 2) return absent("there are fewer than two classes in the probe batch");
    const auto device = batch->features.device();
    const at::Tensor h = batch->features.to(at::kDouble);
    const at::Tensor on_device = labels.to(device);
    const at::Tensor kept = present.to(device);
    // [n, K]: which example is of which class.
    const at::Tensor member = on_device.unsqueeze(1).eq(kept.unsqueeze(0)).to(at::kDouble);
    const at::Tensor means = at::mm(member.t(), h) /
                             counts.index_select(0, present).to(device, at::kDouble).unsqueeze(1);
    const at::Tensor centred = means - means.mean(0, true);  // M', [K, p]
    const at::Tensor within = h - at::mm(member, means);
    std::vector<at::Tensor> numbers = collapse(centred, within, batch->weight, kept);
    // Against differences only, so that the means' size costs no digits.
    const at::Tensor distance =
        means.square().sum(1).unsqueeze(0) - 2 * at::mm(h, means.t());  // less |h|^2
    const at::Tensor nearest = kept.index_select(0, distance.argmin(1));
    const at::Tensor said = batch->logits.argmax(1);
    numbers.push_back(said.ne(nearest).to(at::kDouble).mean());
    numbers.push_back(said.ne(on_device).to(at::kDouble).mean());
    const size_t slot = transfer.send(at::stack(numbers));
    return [slot](const Arrived& arrived, Recorder& recorder) {
      const char* names[] = {"class_variability",          "class_mean_norm_variation",
                             "class_mean_angle_deviation", "self_duality",
                             "nearest_center_mismatch",    "probe_error"};
      for (size_t i = 0; i < 6; ++i) {
        const double value = arrived.data(slot)[i];
        if (!std::isnan(value)) recorder.run(names[i], value, Recorder::kUnknown);
      }
    };
  }

 private:
  struct Batch {
    at::Tensor features;  // [n, p]
    at::Tensor logits;    // [n, C]
    at::Tensor labels;    // [n], on the CPU
    at::Tensor weight;    // [C, p]
  };

  static Finish absent(const std::string& why) {
    return not_observed("neural_collapse_not_observed", "neural collapse is not observed: " + why);
  }

  std::optional<Batch> gather(FeaturePass& pass, std::string* why) const {
    std::vector<at::Tensor> features, logits, labels;
    Batch batch;
    std::optional<uint32_t> weight;
    for (int64_t chunk = 0; chunk < pass.chunks(); ++chunk) {
      const at::Tensor given = pass.labels(chunk);
      if (!given.defined()) {
        *why = "it needs the examples' classes (ProbeLoss::labels)";
        return std::nullopt;
      }
      const LayerUse* last = nullptr;
      for (const LayerUse& use : pass.uses()) {
        if (use.chunk == chunk && use.op->kind() == LayerOperator::Kind::kLinear) last = &use;
      }
      if (last == nullptr || (weight && *weight != last->weight)) {
        *why = "no linear layer is the last one";
        return std::nullopt;
      }
      weight = last->weight;
      batch.weight = last->op->matrix(model_.parameters[last->weight].tensor);
      const at::Tensor h = last->op->rows(last->input);
      const at::Tensor z = last->op->rows(last->output);
      if (h.size(0) != given.size(0) || z.size(0) != given.size(0)) {
        *why = "the last linear layer does not have one row for each label";
        return std::nullopt;
      }
      features.push_back(h);
      logits.push_back(z);
      labels.push_back(given);
    }
    batch.features = at::cat(features);
    batch.logits = at::cat(logits);
    batch.labels = at::cat(labels);
    if (batch.labels.size(0) == 0) {
      *why = "the probe batch is empty";
      return std::nullopt;
    }
    return batch;
  }

  /// NC1 to NC3, NaN where there are none.
  static std::vector<at::Tensor> collapse(const at::Tensor& centred, const at::Tensor& within,
                                          const at::Tensor& weight, const at::Tensor& classes) {
    const auto k = static_cast<double>(centred.size(0));
    std::vector<at::Tensor> numbers(4, at::full({}, std::nan(""), centred.options()));
    const at::Tensor norms = centred.norm(2, {1});
    const at::Tensor total = centred.norm();
    if (!(total.item<double>() > 0) || !std::isfinite(total.item<double>())) return numbers;
    // S_B = M M'/K, so S_B^+ = K V s^-2 V' with M' = U s V'.
    const auto decomposed = at::linalg_svd(centred, /*full_matrices=*/false);
    const at::Tensor& s = std::get<1>(decomposed);
    const at::Tensor& vh = std::get<2>(decomposed);
    constexpr double kRank = 1e-10;
    const at::Tensor there = s.gt(s.max() * kRank);
    const at::Tensor inverse = at::where(there, s.square().reciprocal(), at::zeros_like(s));
    const at::Tensor along = at::mm(within, vh.t()).square().mean(0);
    numbers[0] = (along * inverse).sum();  // K cancels
    numbers[1] = norms.std(/*unbiased=*/true) / norms.mean();
    const at::Tensor unit = centred / norms.unsqueeze(1);
    at::Tensor off = (at::mm(unit, unit.t()) + 1 / (k - 1)).abs();
    off.fill_diagonal_(0);
    numbers[2] = off.sum() / (k * (k - 1));
    const at::Tensor rows = weight.detach().to(at::kDouble).index_select(0, classes);
    numbers[3] = (rows / rows.norm() - centred / total).square().sum();
    return numbers;
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_neural_collapse_probe() {
  return std::make_unique<NeuralCollapseProbe>();
}

}  // namespace tycho
