#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "feature_support.h"

namespace tycho {
namespace {

// Products of all pairs are taken of so many examples at most, the first.
constexpr int64_t kMaxExamples = 512;

/// How similar is what a layer represents to what it did before? Unbiased linear CKA (Kornblith et
/// al. 2019) of a layer's outputs z on the probe batch with those of the first observation
/// (feature_similarity) and of the one before (feature_similarity_step):
///   HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),  K = Z Z', L likewise, diagonals set to 0,
///   HSIC(K, L) = [tr K L + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2/(n - 2) 1'K L 1] / (n (n - 3))
/// (Song et al. 2012, HSIC_1; the biased one tends to 1 where there are fewer examples than
/// features). 1: the same up to a rotation and a factor. It may lie a little outside of 0 and 1.
/// Features of all positions of an example, and of all uses of the layer, are taken together. At
/// least 4 examples; at most 512 are taken. Costs n^2/2 products of outputs for each layer; keeps
/// two matrices n x n for each.
class RepresentationProbe : public Probe {
 public:
  std::string name() const override { return "representation"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> layer = {v1::SCOPE_LAYER};
    return {
        since_first_observation(define_statistic(
            "feature_similarity", "CKA(z_t, z_0)", "1", layer,
            "Unbiased linear centred kernel alignment of the layer's outputs on the "
            "probe batch with those of the first observation.",
            "Kornblith et al. 2019; Song et al. 2012")),
        define_statistic("feature_similarity_step", "CKA(z_t, z_s)", "1", layer,
                         "The same with those of the previous observation.",
                         "Kornblith et al. 2019; Song et al. 2012"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr || !pass->comparable()) return nullptr;
    const bool first = !begun_;
    begun_ = true;
    std::vector<Sent> sent;
    std::vector<uint32_t> no_examples;
    for (const auto& [layer, uses] : uses_by_layer(*pass)) {
      const at::Tensor now = gram(*pass, uses);
      if (!now.defined()) {
        no_examples.push_back(layer);
        continue;
      }
      if (first) layers_[layer] = {now, now};
      const auto known = layers_.find(layer);
      if (known == layers_.end() || known->second.first.sizes() != now.sizes()) continue;
      if (!first) {
        const at::Tensor& zero = known->second.first;
        const at::Tensor& last = known->second.last;
        sent.push_back(
            {layer, transfer.send(at::stack({hsic(now, now), hsic(now, zero), hsic(zero, zero),
                                             hsic(now, last), hsic(last, last)}))});
      }
      known->second.last = now;
    }
    return [sent = std::move(sent), no_examples = std::move(no_examples), first, now = step.step](
               const Arrived& arrived, Recorder& recorder) {
      if (first) say_reference(now, recorder);
      for (const uint32_t layer : no_examples) {
        recorder.event(v1::Event::NOT_OBSERVED, "feature_similarity_not_observed",
                       "the layer's output does not show which of it belongs to which example, or "
                       "there are fewer than 4",
                       v1::SCOPE_LAYER, layer);
      }
      for (const Sent& entry : sent) {
        const double* h = arrived.data(entry.slot);
        const auto record = [&](const char* statistic, double cross, double self) {
          // What is the same for all examples is similar to nothing.
          if (!(h[0] > 0) || !(self > 0)) return;
          recorder.layer(statistic, entry.layer, cross / std::sqrt(h[0] * self),
                         Recorder::kUnknown);
        };
        record("feature_similarity", h[1], h[2]);
        record("feature_similarity_step", h[3], h[4]);
      }
    };
  }

 private:
  struct Sent {
    uint32_t layer;
    size_t slot;
  };
  struct Grams {
    at::Tensor first, last;
  };

  /// float64 [n, n] without its diagonal; undefined: the examples cannot be found.
  static at::Tensor gram(FeaturePass& pass, const std::vector<LayerUse>& uses) {
    // One use after the other, in each chunk: features beside each other, examples below.
    std::map<int64_t, std::vector<at::Tensor>> chunks;
    int64_t examples = 0;
    for (const LayerUse& use : uses) {
      if (chunks.count(use.chunk) == 0 && examples >= kMaxExamples) break;
      const at::Tensor rows = pass.by_example(use, use.output);
      if (!rows.defined()) return {};
      auto& parts = chunks[use.chunk];
      if (parts.empty()) examples += rows.size(0);
      parts.push_back(rows);
    }
    std::vector<at::Tensor> stacked;
    for (const auto& [chunk, parts] : chunks) {
      stacked.push_back(parts.size() == 1 ? parts[0] : at::cat(parts, 1));
      if (stacked.back().size(1) != stacked.front().size(1)) return {};
    }
    at::Tensor z = stacked.size() == 1 ? stacked[0] : at::cat(stacked);
    if (z.size(0) > kMaxExamples) z = z.slice(0, 0, kMaxExamples);
    if (z.size(0) < 4) return {};
    if (z.scalar_type() != at::kDouble) z = z.to(at::kFloat);
    // The estimator does not see the mean, but rounding does.
    z = z - z.mean(0, true);
    at::Tensor products = at::mm(z, z.t()).to(at::kDouble);
    products.fill_diagonal_(0);
    return products;
  }

  static at::Tensor hsic(const at::Tensor& k, const at::Tensor& l) {
    const auto n = static_cast<double>(k.size(0));
    const at::Tensor k_rows = k.sum(1);
    const at::Tensor l_rows = l.sum(1);
    return ((k * l).sum() + k_rows.sum() * l_rows.sum() / ((n - 1) * (n - 2)) -
            2 / (n - 2) * k_rows.dot(l_rows)) /
           (n * (n - 3));
  }

  bool begun_ = false;
  std::map<uint32_t, Grams> layers_;
};

}  // namespace

std::unique_ptr<Probe> make_representation_probe() {
  return std::make_unique<RepresentationProbe>();
}

}  // namespace tycho
