#include "transfer.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace tycho {

size_t StepTransfer::send(const at::Tensor& numbers) {
  Slot slot;
  slot.numbers = numbers.detach().to(at::kDouble).contiguous();
  slot.size = slot.numbers.numel();
  // Training goes on before the numbers of another device arrive.
  if (slot.numbers.device().is_cpu() && slot.numbers.is_alias_of(numbers))
    slot.numbers = slot.numbers.clone();
  if (!slot.numbers.device().is_cpu()) {
    size_t batch = 0;
    while (batch < batches_.size() && batches_[batch].device != slot.numbers.device()) ++batch;
    if (batch == batches_.size())
      batches_.push_back({slot.numbers.device(), {}, 0, {}, {}, nullptr});
    slot.batch = batch;
    slot.offset = batches_[batch].size;
    batches_[batch].size += slot.size;
    batches_[batch].parts.push_back(slot.numbers.view(-1));
    slot.numbers = at::Tensor();
  }
  slots_.push_back(std::move(slot));
  return slots_.size() - 1;
}

void StepTransfer::start() {
  for (Batch& batch : batches_) {
    batch.stacked = at::cat(batch.parts);
    batch.parts.clear();
    const bool pinned = batch.device.is_cuda();
    batch.host =
        at::empty({batch.size}, at::TensorOptions().dtype(at::kDouble).pinned_memory(pinned));
    batch.host.copy_(batch.stacked, /*non_blocking=*/pinned);
    if (!pinned) continue;
    const c10::impl::VirtualGuardImpl device(batch.device.type());
    batch.event = std::make_unique<c10::Event>(batch.device.type());
    batch.event->record(device.getStream(batch.device));
  }
}

bool StepTransfer::ready() const {
  for (const Batch& batch : batches_) {
    if (batch.event && !batch.event->query()) return false;
  }
  return true;
}

void StepTransfer::wait() {
  for (Batch& batch : batches_) {
    if (batch.event && !batch.event->query()) batch.host.copy_(batch.stacked);
  }
}

const double* StepTransfer::data(size_t slot) const {
  const Slot& entry = slots_.at(slot);
  return entry.batch == kNoBatch ? entry.numbers.data_ptr<double>()
                                 : batches_[entry.batch].host.data_ptr<double>() + entry.offset;
}

size_t StepTransfer::size(size_t slot) const { return static_cast<size_t>(slots_.at(slot).size); }

}  // namespace tycho
