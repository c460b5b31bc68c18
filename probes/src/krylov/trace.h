#pragma once

#include <vector>

#include "tycho/krylov.h"

namespace tycho {

/// Diagonal of a matrix in two parts: one exact, and independent samples of the rest whose mean is
/// unbiased. Sums over any entries give the trace of that block.
struct DiagonalSamples {
  at::Tensor exact;    ///< [n]
  at::Tensor samples;  ///< [kTraceSamples, n]
};

constexpr int64_t kTraceSamples = 6;
/// Up to this dimension the diagonal is had entry by entry.
constexpr int64_t kExactDiagonal = 128;

/// Hutch++ (Meyer, Musco, Musco & Woodruff 2021) for a symmetric matrix A: with P the projection on
/// the range of A S for 6 random sign vectors S,
///   A = P A + A P - P A P + (1 - P) A (1 - P).
/// The diagonal sums of the first three are exact; those of the last are sampled by
/// g (1 - P) A (1 - P) g with random sign vectors g, as many as kTraceSamples. 18 products and the
/// memory of 18 vectors; `signs` makes one sign vector.
///
/// In up to kExactDiagonal dimensions one product each gives all of it: the samples are zero.
DiagonalSamples sample_diagonal(const LinearMap& matrix, int64_t dimension,
                                const std::function<at::Tensor()>& signs);

double mean(const std::vector<double>& values);
/// Of the mean of independent values, two at least.
double standard_error(const std::vector<double>& values);

}  // namespace tycho
