#include "features/batch_recorder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

namespace tycho {
namespace {

/// Shape, and a weighted sum over a sample of the elements.
at::Tensor fingerprint(const at::Tensor& data) {
  constexpr int64_t kSample = 1 << 12;
  std::vector<double> sizes;
  for (const int64_t size : data.sizes()) sizes.push_back(static_cast<double>(size));
  const at::Tensor shape = at::tensor(sizes, at::kDouble);
  if (data.numel() == 0 || data.is_complex()) return shape;
  const int64_t stride = (data.numel() + kSample - 1) / kSample;
  const at::Tensor sample =
      data.detach().reshape({-1}).slice(0, 0, c10::nullopt, stride).to(at::kDouble);
  const at::Tensor ramp = at::arange(1, sample.numel() + 1, sample.options()).mul_(0.7).sin_();
  return at::cat({shape, at::dot(sample, ramp).reshape({1}).to(at::kCPU)});
}

}  // namespace

BatchRecorder::BatchRecorder(ParameterMap* map, int64_t batch_dim)
    : map_(map),
      batch_dim_(batch_dim),
      flow_([map](const at::Tensor& tensor) { return map->touches(tensor); }) {}

void BatchRecorder::begin() {
  flow_.clear();
  dependent_.clear();
  data_.clear();
  batch_ = {};
  batch_.dim = batch_dim_;
}

std::vector<at::Tensor> BatchRecorder::end() {
  dependent_.clear();
  return std::exchange(data_, {});
}

bool BatchRecorder::depends_on_parameters(const at::Tensor& tensor) const {
  if (!tensor.defined() || !tensor.has_storage()) return false;
  const auto found = dependent_.find(tensor.storage().unsafeGetStorageImpl());
  return found != dependent_.end() && !found->second.expired();
}

void BatchRecorder::before(std::string_view name, c10::ArrayRef<const c10::IValue> inputs,
                           bool takes_parameter) {
  if (flow_.before(name, inputs, batch_dim_, /*before_model=*/batch_.size == 0)) {
    batch_.rearranged = true;
  }
  reads_parameters_ = takes_parameter;
  if (takes_parameter) return;
  each_tensor(inputs, [&](const at::Tensor& tensor, size_t, bool) {
    reads_parameters_ = reads_parameters_ || depends_on_parameters(tensor);
  });
}

void BatchRecorder::after(const std::vector<c10::IValue>& results) {
  flow_.after(results);
  if (!reads_parameters_) return;
  each_tensor(results, [&](const at::Tensor& tensor, size_t, bool) {
    if (!tensor.has_storage() || map_->find(tensor)) return;
    dependent_.insert_or_assign(tensor.storage().unsafeGetStorageImpl(),
                                tensor.storage().getWeakStorageImpl());
  });
}

void BatchRecorder::meet(const WatchedCall& call) {
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    if (!call.arguments[i].isTensor()) continue;
    const at::Tensor tensor = call.arguments[i].toTensor();
    if (!tensor.defined() || !flow_.carries(tensor)) continue;
    if (batch_.size == 0 && (tensor.dim() > std::max<int64_t>(batch_dim_, 1) ||
                             (tensor.dim() == 1 && batch_dim_ == 0))) {
      batch_.size = tensor.size(batch_dim_);
    }
    // Running statistics of BatchNorm change, and are no data.
    const bool statistics =
        (call.name == "aten::batch_norm" || call.name == "aten::instance_norm") && i > 2;
    if (!depends_on_parameters(tensor) && !statistics) data_.push_back(fingerprint(tensor));
  }
}

}  // namespace tycho
