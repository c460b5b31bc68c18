#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "built_in.h"

namespace tycho {
namespace {

constexpr double kSame = 1e-4;  // relative, of squared norms of one example's gradient

/// The share of the examples whose gradient none before them in the batch has,
/// by its norm in each parameter, to 1e-4 of its square. Copies in a batch have the same, unless
/// dropout or augmentation makes them differ.
///
/// Over the parameters whose single examples' norms are known for the whole batch. Examples are not
/// counted where the gradient of half of the parameters or more is zero: behind silent layers it
/// says nothing of the inputs. Needs a batch of at least 2. Cost: that of the norms of single
/// examples, and O(B log B) on the host.
class DistinctExamplesProbe : public Probe {
 public:
  std::string name() const override { return "distinct_examples"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("distinct_examples", "n_distinct/n", "1", run,
                         "Share of the batch's examples whose gradient, by its norm in each "
                         "parameter, equals that of no earlier example. 1 if no example occurs "
                         "twice.",
                         "definition"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.per_example_gradient_norms = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    std::vector<std::vector<size_t>> sent;
    for (const ParameterObservation& seen : *step.parameters) {
      int64_t examples = 0;
      for (const at::Tensor& norms : seen.per_example_norm_sq) examples += norms.numel();
      if (step.batch_size < 2 || examples != step.batch_size) continue;
      sent.emplace_back();
      for (const at::Tensor& norms : seen.per_example_norm_sq)
        sent.back().push_back(transfer.send(norms));
    }
    if (sent.empty()) return nullptr;
    return [sent = std::move(sent)](const Arrived& arrived, Recorder& recorder) {
      Norms norms;
      for (const std::vector<size_t>& slots : sent) {
        norms.emplace_back();
        for (const size_t slot : slots) {
          const double* values = arrived.data(slot);
          norms.back().insert(norms.back().end(), values, values + arrived.size(slot));
        }
      }
      record(norms, recorder);
    };
  }

 private:
  using Norms = std::vector<std::vector<double>>;  ///< [parameter][example], squared

  static void record(const Norms& norms, Recorder& recorder) {
    const size_t batch = norms.front().size();
    std::vector<double> sums(batch, 0);
    for (const std::vector<double>& parameter : norms) {
      for (size_t i = 0; i < batch; ++i) sums[i] += parameter[i];
    }
    std::vector<size_t> order;
    for (size_t i = 0; i < batch; ++i) {
      if (!std::isfinite(sums[i])) return;
      size_t zeros = 0;
      for (const std::vector<double>& parameter : norms) zeros += parameter[i] == 0 ? 1 : 0;
      if (2 * zeros < norms.size()) order.push_back(i);
    }
    if (order.size() < 2) return;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sums[a] < sums[b]; });
    recorder.run(
        "distinct_examples",
        static_cast<double>(distinct(norms, sums, order)) / static_cast<double>(order.size()),
        Recorder::kUnknown);
  }

  /// `order`: examples by ascending sum.
  static size_t distinct(const Norms& norms, const std::vector<double>& sums,
                         const std::vector<size_t>& order) {
    const auto same = [&](size_t a, size_t b) {
      return std::all_of(norms.begin(), norms.end(), [&](const std::vector<double>& parameter) {
        return std::fabs(parameter[a] - parameter[b]) <=
               kSame * (std::max(parameter[a], parameter[b]) + kSame * sums[a]);
      });
    };
    size_t number = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      bool seen = false;
      for (size_t j = i; j > 0 && !seen; --j) {
        if (sums[order[j - 1]] < (1 - 2 * kSame) * sums[order[i]]) break;
        seen = same(order[i], order[j - 1]);
      }
      if (!seen) ++number;
    }
    return number;
  }
};

}  // namespace

std::unique_ptr<Probe> make_distinct_examples_probe() {
  return std::make_unique<DistinctExamplesProbe>();
}

}  // namespace tycho
