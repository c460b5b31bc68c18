#include <ATen/ATen.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"
#include "tycho/feature_pass.h"

namespace tycho {
namespace {

/// Does attention collapse, or do its logits grow? On the probe batch, at the parameters after the
/// update: attention_entropy is the mean over examples, heads and queries of -sum p log p (nats, 0
/// to log of the number of keys), attention_largest_logit the largest input to the softmax.
/// Recorded at the layer whose linear operator ran last before the softmax: nn::MultiheadAttention,
/// or the projection of a hand-written attention. Seen where attention is a softmax over the last
/// dimension whose result, after dropout if any, a matrix product takes first; fused kernels are
/// not seen. Costs a pass over the attention weights beside the feature pass.
class AttentionProbe : public Probe {
 public:
  std::string name() const override { return "attention"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> layer = {v1::SCOPE_LAYER};
    return {
        define_statistic("attention_entropy", "H(p)", "nat", layer,
                         "Mean over examples, heads and queries of the entropy of the attention "
                         "weights on the probe batch.",
                         "Zhai et al. 2023"),
        define_statistic("attention_largest_logit", "max q.k", "1", layer,
                         "Largest attention logit on the probe batch, as passed to the softmax.",
                         "Wortsman et al. 2023"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_features = needs.probe_attention = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    FeaturePass* pass = step.features;
    if (pass == nullptr) return nullptr;
    struct Sum {
      at::Tensor entropy, largest;
      double queries = 0;
    };
    std::map<uint32_t, Sum> layers;
    for (const AttentionUse& use : pass->attention()) {
      Sum& sum = layers[use.layer];
      sum.entropy = sum.entropy.defined() ? sum.entropy + use.entropy_sum : use.entropy_sum;
      sum.largest =
          sum.largest.defined() ? at::maximum(sum.largest, use.largest_logit) : use.largest_logit;
      sum.queries += static_cast<double>(use.queries);
    }
    struct Sent {
      uint32_t layer;
      double queries;
      size_t slot;
    };
    std::vector<Sent> sent;
    for (const auto& [layer, sum] : layers) {
      sent.push_back({layer, sum.queries, transfer.send(at::stack({sum.entropy, sum.largest}))});
    }
    return [sent = std::move(sent)](const Arrived& arrived, Recorder& recorder) {
      for (const Sent& entry : sent) {
        const double* numbers = arrived.data(entry.slot);
        recorder.layer("attention_entropy", entry.layer, numbers[0] / entry.queries,
                       Recorder::kUnknown);
        recorder.layer("attention_largest_logit", entry.layer, numbers[1], Recorder::kUnknown);
      }
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_attention_probe() { return std::make_unique<AttentionProbe>(); }

}  // namespace tycho
