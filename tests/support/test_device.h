#pragma once

#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>

namespace tycho {

/// The device that a test's tensors live on: the CPU, or what TYCHO_TEST_DEVICE names. Where that
/// is a GPU and there is none the process ends, and CTest counts the test as skipped.
inline torch::Device test_device() {
  static const torch::Device device = [] {
    const char* name = std::getenv("TYCHO_TEST_DEVICE");
    torch::Device chosen(name != nullptr ? name : "cpu");
    if (chosen.is_cuda() && !torch::cuda::is_available()) {
      std::puts("there is no CUDA device");
      std::exit(0);
    }
    // Some convolutions of cuDNN add in an order that changes from call to call.
    at::globalContext().setDeterministicCuDNN(true);
    return chosen;
  }();
  return device;
}

}  // namespace tycho
