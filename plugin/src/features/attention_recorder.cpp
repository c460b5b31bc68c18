#include "features/attention_recorder.h"

#include <ATen/ATen.h>

#include <utility>

#include "features/watched_call.h"

namespace tycho {
namespace {

/// Operators whose result holds the same weights, but for dropout's zeros.
bool passes_on(std::string_view name) {
  return name == "aten::dropout" || name == "aten::view" || name == "aten::reshape" ||
         name == "aten::expand" || name == "aten::contiguous" || name == "aten::to" ||
         name == "aten::type_as" || name == "aten::unsqueeze" || name == "aten::squeeze" ||
         name == "aten::flatten" || name == "aten::_unsafe_view";
}

}  // namespace

void AttentionRecorder::before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
                               std::optional<uint32_t> layer) {
  running_.reset();
  passed_on_.reset();
  if (inputs.empty() || !inputs[0].isTensor() || !inputs[0].toTensor().defined()) return;
  const at::Tensor first = inputs[0].toTensor();
  if (name.back() == '_') {
    // What is overwritten is not what was seen.
    for (auto& each : softmaxes_) {
      if (each && (shares_storage(each->weights, first) || shares_storage(each->scores, first))) {
        each.reset();
      }
    }
    return;
  }
  if (name == "aten::softmax") {
    if (inputs.size() < 2 || !inputs[1].isInt() || first.dim() < 3) return;
    const int64_t dim = inputs[1].toInt();
    if (dim != -1 && dim != first.dim() - 1) return;
    if (layer) running_ = Softmax{first.detach(), {}, *layer};
    return;
  }
  const auto number = holds_.find(first);
  if (!number || !softmaxes_[*number]) return;
  std::optional<Softmax>& softmax = softmaxes_[*number];
  if (name == "aten::matmul" || name == "aten::bmm") {
    AttentionUse use;
    use.layer = softmax->layer;
    const at::Tensor& p = softmax->weights;
    use.queries = p.size(-1) == 0 ? 0 : p.numel() / p.size(-1);
    if (use.queries > 0) {
      use.entropy_sum = at::xlogy(p, p).sum(at::kDouble).neg();
      use.largest_logit = softmax->scores.max().to(at::kDouble);
      found_.push_back(std::move(use));
    }
    softmax.reset();
  } else if (passes_on(name)) {
    passed_on_ = number;
  }
}

void AttentionRecorder::after(const std::vector<c10::IValue>& results) {
  auto softmax = std::exchange(running_, std::nullopt);
  auto number = std::exchange(passed_on_, std::nullopt);
  if ((!softmax && !number) || results.empty() || !results[0].isTensor()) return;
  const at::Tensor output = results[0].toTensor();
  if (!output.defined()) return;
  if (softmax) {
    softmax->weights = output.detach();
    number = softmaxes_.size();
    softmaxes_.push_back(std::move(softmax));
  }
  holds_.set(output, *number);
}

std::vector<AttentionUse> AttentionRecorder::take() {
  running_.reset();
  passed_on_.reset();
  softmaxes_.clear();
  holds_.clear();
  return std::exchange(found_, {});
}

}  // namespace tycho
