#include "krylov/trace.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace tycho {
namespace {

constexpr int64_t kSketch = 6;  // directions that are treated exactly

/// By one product for each entry.
DiagonalSamples whole_diagonal(const LinearMap& matrix, const at::TensorOptions& options,
                               int64_t dimension) {
  const at::Tensor diagonal = at::zeros({dimension}, options);
  for (int64_t i = 0; i < dimension; ++i) {
    at::Tensor unit = at::zeros({dimension}, options);
    unit[i] = 1;
    diagonal[i] = matrix(unit)[i];
  }
  return {diagonal, at::zeros({kTraceSamples, dimension}, options)};
}

at::Tensor without(const at::Tensor& basis, const at::Tensor& vector) {
  return vector - at::mv(basis.t(), at::mv(basis, vector));
}

}  // namespace

DiagonalSamples sample_diagonal(const LinearMap& matrix, int64_t dimension,
                                const std::function<at::Tensor()>& signs) {
  if (dimension <= kExactDiagonal) return whole_diagonal(matrix, signs().options(), dimension);
  const int64_t sketch = std::min(kSketch, dimension);
  std::vector<at::Tensor> sketched;
  for (int64_t i = 0; i < sketch; ++i) sketched.push_back(matrix(signs()));
  // Rows are orthonormal; of a matrix of lower rank some are arbitrary, which does no harm.
  const at::Tensor basis = std::get<0>(at::linalg_qr(at::stack(sketched, 1))).t().contiguous();
  std::vector<at::Tensor> products;
  for (int64_t i = 0; i < sketch; ++i) products.push_back(matrix(basis[i]));
  const at::Tensor images = at::stack(products);  // rows: A q_i
  const at::Tensor inside = at::mm(basis, images.t());
  std::vector<at::Tensor> samples;
  for (int64_t i = 0; i < kTraceSamples; ++i) {
    const at::Tensor sign = signs();
    const at::Tensor image = matrix(without(basis, sign));
    samples.push_back(sign * without(basis, image));
  }
  // P A + A P - P A P, entry by entry.
  return {(basis * (2 * images - at::mm(inside, basis))).sum(0), at::stack(samples)};
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double standard_error(const std::vector<double>& values) {
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  const auto count = static_cast<double>(values.size());
  return std::sqrt(squares / (count - 1) / count);
}

}  // namespace tycho
