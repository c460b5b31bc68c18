#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace tycho {

/// Tries the backward pass of convolutions with kernels of these parameters' shapes (float32 on the
/// CPU, three to five dimensions; others are not looked at), each a few times with free memory
/// filled with NaN, against float64. Not empty: a kernel for which it is wrong, and what helps.
///
/// Debian 13's LibTorch 2.6 with oneDNN 3.7 needs it: with up to 8 output channels and kernels
/// larger than 1 the gradient of the input reads memory that nobody wrote, in training too. A
/// transposed convolution's output is the same computation, and as wrong.
///
/// Small convolutions, some milliseconds for each shape.
std::string faulty_convolution(const std::vector<at::Tensor>& parameters);

}  // namespace tycho
