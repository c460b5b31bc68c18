#include "stray_weights.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "tensor_sums.h"

namespace tycho {
namespace {

constexpr size_t kMost = 256;
constexpr int kStepsUnchanged = 3;

bool is_weights_place(std::string_view name, size_t position) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has("embedding")) return position == 0;
  if (position == 0) return false;
  return has("linear") || has("conv") || has("norm") || has("lstm") || has("gru") || has("rnn") ||
         has("addmm") || has("matmul") || name == "aten::mm" || has("prelu");
}

}  // namespace

void StrayWeights::used(std::string_view operator_name, size_t position, const at::Tensor& leaf) {
  if (said_ || !leaf.is_floating_point() || leaf.layout() != at::kStrided) return;
  if (!is_weights_place(operator_name, position)) return;
  const auto* key = leaf.unsafeGetTensorImpl();
  const auto found = strays_.find(key);
  if (found != strays_.end() && !found->second.alive.expired()) {
    found->second.in_step = true;
    return;
  }
  if (found == strays_.end() && strays_.size() >= kMost) return;
  Stray stray{c10::weak_intrusive_ptr<c10::TensorImpl>(leaf.getIntrusivePtr()),
              std::string(operator_name),
              {},
              0,
              true,
              false};
  strays_.insert_or_assign(key, std::move(stray));
}

std::optional<std::string> StrayWeights::end_step() {
  if (said_ || strays_.empty()) return std::nullopt;
  std::vector<std::string> found;
  for (auto entry = strays_.begin(); entry != strays_.end();) {
    Stray& stray = entry->second;
    const auto impl = stray.alive.lock();
    if (!impl) {
      entry = strays_.erase(entry);
      continue;
    }
    const bool in_step = std::exchange(stray.in_step, false);
    ++entry;
    if (!in_step || stray.trained) continue;
    const at::Tensor leaf(impl);
    if (!leaf.grad().defined()) continue;
    const at::Tensor now = sum_and_square(leaf.detach());
    const bool same = stray.sums.defined() && at::equal(stray.sums, now);
    stray.trained = stray.sums.defined() && !same;
    stray.sums = now;
    stray.unchanged = same ? stray.unchanged + 1 : 0;
    if (stray.unchanged + 1 >= kStepsUnchanged) {
      found.push_back(fmt::format("{} with a tensor of shape [{}]", stray.operator_name,
                                  fmt::join(leaf.sizes(), ", ")));
    }
  }
  if (found.empty()) return std::nullopt;
  said_ = true;
  std::sort(found.begin(), found.end());
  const std::string others =
      found.size() > 1 ? fmt::format(" and {} more", found.size() - 1) : std::string();
  strays_.clear();
  return fmt::format(
      "operators use weights that no module registers and nothing trains: {}{}; they receive "
      "gradients, but did not change in {} observed steps. Register them (register_module, "
      "register_parameter) and give them to the optimizer, or freeze them "
      "(requires_grad_(false))",
      found.front(), others, kStepsUnchanged);
}

}  // namespace tycho
