#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "curvature_support.h"
#include "feature_support.h"

namespace tycho {
namespace {

constexpr int64_t kExactOutputs = 10;  // of an example, up to which each is differentiated
constexpr int64_t kSigns = 8;          // random combinations of outputs otherwise
constexpr uint64_t kStream = 0xfea;

/// Do a layer's features look as theory says? W is its weight as a matrix [out, in], for
/// convolutions on patches of the input; sums go over positions and over uses of the weight.
///
/// Neural feature ansatz (theory T2.8): feature_ansatz_alignment is the cosine of W'W and E J'J, J
/// = (df/dz) W the Jacobian of the network's output with respect to the layer's input through this
/// weight, E over the probe batch. Exact over outputs where an example has at most 10; otherwise
/// from 8 random sign vectors over all outputs, whose mean of J'ss'J is J'J.
///
/// FACT (theory T2.7): with L2 decay lambda of the optimizer, a stationary point has W'W = F = -E
/// [(dl/dh) h'] / lambda, and dl/dh h' = W' (dl/dz) h', so that F = -W' (dL/dW) / lambda.
/// fact_alignment is the cosine of W'W and the symmetric part of F, fact_residual |W'W - F|/|W'W|,
/// fact_asymmetry |F - F'|/|F|, which is 0 at a stationary point. Only where the decay is coupled
/// and not 0, and the probe loss is the loss that is trained (same reduction), apart from its data.
///
/// Products are made on the smaller side of the weight, in float64. Costs one gradient of the probe
/// loss, and a backward pass for each output or sign vector. Not for embeddings, gains, grouped and
/// transposed convolutions.
class FeatureAnsatzProbe : public Probe {
 public:
  std::string name() const override { return "feature_ansatz"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> layer = {v1::SCOPE_LAYER};
    return {
        define_statistic(
            "feature_ansatz_alignment", "cos(W'W, E J'J)", "1", layer,
            "Cosine of the weight's Gram matrix and the mean outer product of the "
            "output's gradients with respect to the layer's input through this weight.",
            "Radhakrishnan et al. 2024"),
        define_statistic("fact_alignment", "cos(W'W, F)", "1", layer,
                         "Cosine of the weight's Gram matrix and the symmetric part of F = "
                         "-E[(dl/dh)h']/lambda, h the layer's input, lambda the weight decay.",
                         "Boix-Adsera et al. 2025"),
        define_statistic("fact_residual", "|W'W - F|/|W'W|", "1", layer,
                         "Relative difference of the weight's Gram matrix and F.",
                         "Boix-Adsera et al. 2025"),
        define_statistic("fact_asymmetry", "|F - F'|/|F|", "1", layer,
                         "Antisymmetric part of F: 0 at a stationary point.",
                         "Boix-Adsera et al. 2025"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = needs.probe_feature_gradients = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr) return nullptr;
    // One entry for each weight that is used as a matrix.
    std::map<uint32_t, Entry> entries;
    for (size_t i = 0; i < pass->uses().size(); ++i) {
      const LayerUse& use = pass->uses()[i];
      const at::Tensor matrix = use.op->matrix(model_.parameters[use.weight].tensor);
      if (!matrix.defined() || matrix.numel() == 0) continue;
      Entry& entry = entries[use.weight];
      // Uses of other parts of the weight are other matrices.
      if (entry.uses.empty()) {
        entry.op = use.op;
        entry.layer = use.layer;
        entry.shared = use.op->matrix(model_.parameters[use.weight].tensor);
      }
      entry.same = entry.same && entry.shared.sizes() == matrix.sizes() &&
                   entry.shared.data_ptr() == matrix.data_ptr() &&
                   matrix.numel() == model_.parameters[use.weight].tensor.numel();
      entry.uses.push_back(i);
    }
    add_jacobians(*pass, step, &entries);
    const std::vector<at::Tensor> gradients = pass->loss_gradients();
    std::vector<std::pair<uint32_t, size_t>> sent;
    bool decoupled = false;
    for (auto& [weight, entry] : entries) {
      if (!entry.same) continue;
      const double decay = decay_of(step, weight, &decoupled);
      at::Tensor gradient;
      if (decay > 0 && gradients[weight].defined()) gradient = entry.op->matrix(gradients[weight]);
      sent.emplace_back(entry.layer, transfer.send(compare(entry, gradient, decay)));
    }
    const bool no_output = !pass->has_output();
    return [sent = std::move(sent), no_output, decoupled](const Arrived& arrived,
                                                          Recorder& recorder) {
      if (no_output) {
        recorder.event(v1::Event::NOT_OBSERVED, "feature_ansatz_alignment_not_observed",
                       "feature_ansatz_alignment needs the network's output apart from the loss "
                       "(ProbeLoss::output)",
                       v1::SCOPE_RUN, 0);
      }
      if (decoupled) {
        recorder.event(v1::Event::NOT_OBSERVED, "fact_not_observed",
                       "fact_alignment and its like are for coupled weight decay, and the "
                       "optimizer's is decoupled",
                       v1::SCOPE_RUN, 0);
      }
      const char* names[] = {"feature_ansatz_alignment", "fact_alignment", "fact_residual",
                             "fact_asymmetry"};
      for (const auto& [layer, slot] : sent) {
        for (size_t i = 0; i < 4; ++i) {
          // NaN: 0/0, or not asked for.
          const double value = arrived.data(slot)[i];
          if (!std::isnan(value)) recorder.layer(names[i], layer, value, Recorder::kUnknown);
        }
      }
    };
  }

 private:
  struct Entry {
    uint32_t layer = 0;
    std::shared_ptr<const LayerOperator> op;
    at::Tensor shared;  // the matrix, to see whether all uses are of the same
    bool same = true;
    std::vector<size_t> uses;
    at::Tensor square;  // sum of J'J, [in, in], or, where out is smaller, of (df/dz)'(df/dz)
    bool small_out() const { return shared.size(0) < shared.size(1); }
  };

  /// Sums over outputs and examples of products of the output's gradients.
  void add_jacobians(FeaturePass& pass, const StepView& step, std::map<uint32_t, Entry>* entries) {
    if (!pass.has_output()) return;
    at::Generator generator = own_generator(step, kStream);
    for (int64_t chunk = 0; chunk < pass.chunks(); ++chunk) {
      const at::Tensor& output = pass.outputs()[static_cast<size_t>(chunk)];
      for (const at::Tensor& seed : seeds_of(output, pass.examples(chunk), generator)) {
        const std::vector<at::Tensor> d = pass.gradients(chunk, seed);
        for (auto& [weight, entry] : *entries) {
          if (!entry.same) continue;
          for (const size_t i : entry.uses) {
            if (!d[i].defined()) continue;
            at::Tensor rows = entry.op->rows(d[i]);
            if (!entry.small_out()) rows = at::mm(rows, entry.shared.to(rows.scalar_type()));
            const at::Tensor square = at::mm(rows.t(), rows).to(at::kDouble);
            entry.square = entry.square.defined() ? entry.square + square : square;
          }
        }
      }
    }
  }

  static std::vector<at::Tensor> seeds_of(const at::Tensor& output, int64_t examples,
                                          at::Generator generator) {
    std::vector<at::Tensor> seeds;
    if (!output.is_floating_point() || output.numel() == 0) return seeds;
    const bool one_row_each = output.dim() <= 2 && output.dim() > 0 && output.size(0) == examples;
    const int64_t each = output.dim() == 2 ? output.size(1) : 1;
    if (one_row_each && each <= kExactOutputs) {
      for (int64_t k = 0; k < each; ++k) {
        seeds.push_back(at::zeros_like(output));
        (output.dim() == 2 ? seeds.back().select(1, k) : seeds.back()).fill_(1);
      }
      return seeds;
    }
    for (int64_t k = 0; k < kSigns; ++k) {
      seeds.push_back(
          at::randint(0, 2, output.sizes(), generator, at::TensorOptions().dtype(at::kFloat))
              .mul_(2)
              .sub_(1)
              .to(output.options()));
    }
    return seeds;
  }

  static double decay_of(const StepView& step, uint32_t parameter, bool* decoupled) {
    if (step.optimizer == nullptr) return 0;
    for (const v1::ParameterGroup& group : step.optimizer->group()) {
      if (std::find(group.parameter().begin(), group.parameter().end(), parameter) ==
          group.parameter().end()) {
        continue;
      }
      if (!group.decoupled_weight_decay()) return group.weight_decay();
      *decoupled = *decoupled || group.weight_decay() > 0;
    }
    return 0;
  }

  /// float64 [4]: the four statistics; NaN where there is none.
  static at::Tensor compare(const Entry& entry, const at::Tensor& gradient, double decay) {
    const at::Tensor w = entry.shared.to(at::kDouble);
    at::Tensor weight_square, ansatz_dot, ansatz_square;
    at::Tensor fact_dot, fact_square, fact_transposed;  // <W'W, M>, |M|^2, tr MM with M = W'G
    const at::Tensor none = at::full({}, std::nan(""), w.options());
    const at::Tensor& s = entry.square;
    if (entry.small_out()) {
      // All from matrices [out, out]: B = WW', C = GW'.
      const at::Tensor b = at::mm(w, w.t());
      weight_square = b.square().sum();
      if (s.defined()) {
        const at::Tensor sb = at::mm(s, b);
        ansatz_dot = (b * sb.t()).sum();
        ansatz_square = (sb * sb.t()).sum();
      }
      if (gradient.defined()) {
        const at::Tensor g = gradient.to(at::kDouble);
        const at::Tensor c = at::mm(g, w.t());
        fact_dot = (b * c).sum();
        fact_square = (b * at::mm(g, g.t())).sum();
        fact_transposed = (c * c.t()).sum();
      }
    } else {
      const at::Tensor a = at::mm(w.t(), w);
      weight_square = a.square().sum();
      if (s.defined()) {
        ansatz_dot = (a * s).sum();
        ansatz_square = s.square().sum();
      }
      if (gradient.defined()) {
        const at::Tensor m = at::mm(w.t(), gradient.to(at::kDouble));
        fact_dot = (a * m).sum();
        fact_square = m.square().sum();
        fact_transposed = (m * m.t()).sum();
      }
    }
    std::vector<at::Tensor> result(4, none);
    if (s.defined()) result[0] = ansatz_dot / (weight_square.sqrt() * ansatz_square.sqrt());
    if (gradient.defined()) {
      const at::Tensor symmetric = ((fact_square + fact_transposed) / 2).clamp_min(0);
      result[1] = -fact_dot / (weight_square.sqrt() * symmetric.sqrt());
      const at::Tensor rest = weight_square + 2 * fact_dot / decay + fact_square / (decay * decay);
      result[2] = rest.clamp_min(0).sqrt() / weight_square.sqrt();
      result[3] = (2 * (fact_square - fact_transposed)).clamp_min(0).sqrt() / fact_square.sqrt();
    }
    return at::stack(result);
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_feature_ansatz_probe() {
  return std::make_unique<FeatureAnsatzProbe>();
}

}  // namespace tycho
