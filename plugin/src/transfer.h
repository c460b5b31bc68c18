#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tycho/probe.h"

namespace tycho {

/// The numbers of one step. Those on the CPU are there at once; those of each other device are
/// stacked and copied once, behind the work that produces them, and an event tells when they have
/// arrived.
class StepTransfer : public Transfer, public Arrived {
 public:
  size_t send(const at::Tensor& numbers) override;
  /// Starts the copies; nothing may be sent after.
  void start();
  /// Never waits.
  bool ready() const;
  /// Waits for what is still on its way.
  void wait();
  const double* data(size_t slot) const override;
  size_t size(size_t slot) const override;

 private:
  struct Slot {
    at::Tensor numbers;  ///< float64, contiguous; on the host once arrived
    size_t batch = kNoBatch;
    int64_t offset = 0;
    int64_t size = 0;
  };
  struct Batch {
    at::Device device;
    std::vector<at::Tensor> parts;
    int64_t size = 0;
    at::Tensor stacked;
    at::Tensor host;
    std::unique_ptr<c10::Event> event;
  };
  static constexpr size_t kNoBatch = static_cast<size_t>(-1);

  std::vector<Slot> slots_;
  std::vector<Batch> batches_;
};

}  // namespace tycho
