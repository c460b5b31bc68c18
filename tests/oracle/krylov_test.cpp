// Eigenvalues, traces and quadrature of matrices that are known.
#include "tycho/krylov.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "curvature_support.h"
#include "krylov/trace.h"

namespace tycho {
namespace {

const at::TensorOptions kWide(at::kDouble);

/// Symmetric with these eigenvalues, in a random basis.
at::Tensor with_spectrum(const at::Tensor& values, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  const int64_t n = values.size(0);
  const at::Tensor basis = std::get<0>(at::linalg_qr(at::randn({n, n}, generator, kWide)));
  return at::mm(basis * values, basis.t());
}

LinearMap map_of(const at::Tensor& matrix) {
  return [matrix](const at::Tensor& v) { return at::mv(matrix, v); };
}

Eigenpairs largest(const at::Tensor& matrix, const EigenOptions& options, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  EigenOptions from_random = options;
  from_random.random_part = 1e3;
  return largest_eigenpairs(map_of(matrix), at::randn({matrix.size(0)}, generator, kWide),
                            from_random, generator);
}

void expect_within_bounds(const Eigenpairs& found, const std::vector<double>& right) {
  ASSERT_GE(right.size(), found.values.size());
  for (size_t i = 0; i < found.values.size(); ++i) {
    EXPECT_LE(std::abs(found.values[i] - right[i]), found.bounds[i]) << i;
    EXPECT_GE(found.bounds[i], 1e-14) << i;
  }
}

TEST(Krylov, SmallAndDegenerateMatrices) {
  auto generator = at::detail::createCPUGenerator(1);
  const auto largest_of = [&](const at::Tensor& matrix, int64_t count) {
    EigenOptions options;
    options.count = count;
    options.tolerance = 1e-8;
    const auto start =
        at::randn({matrix.size(0)}, generator, at::TensorOptions().dtype(at::kDouble));
    return largest_eigenpairs([&](const at::Tensor& v) { return at::mv(matrix, v); }, start,
                              options, generator);
  };
  const auto f64 = at::TensorOptions(at::kDouble);
  EXPECT_NEAR(largest_of(at::full({1, 1}, -3.0, f64), 2).values.at(0), -3, 1e-12);
  EXPECT_EQ(largest_of(at::full({1, 1}, -3.0, f64), 2).values.size(), 1U);
  EXPECT_EQ(largest_of(at::zeros({50, 50}, f64), 1).values.at(0), 0);
  // Rank one, with the rest zero, and three times the same eigenvalue.
  const auto u = at::ones({50}, f64);
  const auto one = largest_of(at::outer(u, u), 3);
  EXPECT_NEAR(one.values.at(0), 50, 1e-9);
  EXPECT_NEAR(one.values.at(1), 0, 1e-9);
  const auto diagonal = at::diag(at::cat({at::full({3}, 5.0, f64), at::ones({40}, f64)}));
  for (const double value : largest_of(diagonal, 3).values) EXPECT_NEAR(value, 5, 1e-8);
  // The largest in size is negative: the algebraic maximum is asked for.
  EXPECT_NEAR(largest_of(at::diag(at::linspace(-100, 2, 60, f64)), 1).values.at(0), 2, 1e-7);
  const auto broken = largest_of(at::full({4, 4}, std::nan(""), f64), 1);
  EXPECT_FALSE(broken.finite);
  EXPECT_TRUE(broken.values.empty());
}

TEST(Krylov, QuadratureIntegratesPolynomialsExactly) {
  auto generator = at::detail::createCPUGenerator(2);
  const auto f64 = at::TensorOptions().dtype(at::kDouble);
  const auto half = at::randn({40, 40}, generator, f64);
  const auto matrix = half + half.t();
  const auto start = at::randn({40}, generator, f64);
  const auto rule =
      lanczos_quadrature([&](const at::Tensor& v) { return at::mv(matrix, v); }, start, 6);
  const auto unit = start / start.norm();
  at::Tensor power = unit;
  for (int degree = 0; degree < 12; ++degree) {  // exact up to 2 * 6 - 1
    double sum = 0;
    for (size_t i = 0; i < rule.nodes.size(); ++i) {
      sum += rule.weights[i] * std::pow(rule.nodes[i], degree);
    }
    const double expected = unit.dot(power).item<double>();
    EXPECT_NEAR(sum, expected, 1e-10 * (1 + std::abs(power.norm().item<double>()))) << degree;
    power = at::mv(matrix, power);
  }
}

class RepeatedEigenvalues : public ::testing::TestWithParam<int64_t> {};

TEST_P(RepeatedEigenvalues, AreAllFoundInFewDimensions) {
  const int64_t n = GetParam();
  const at::Tensor values = at::linspace(-2, 1, n, kWide);
  const std::vector<double> top = {7, 7, 7, 6, 5, 5, 4, 4, 4, 4};
  for (size_t i = 0; i < top.size(); ++i) values[static_cast<int64_t>(i)] = top[i];
  const at::Tensor matrix = with_spectrum(values, 3);
  EigenOptions options;
  options.count = 10;
  options.max_products = n > 151 ? 350 : 150;
  options.repeated = true;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    const Eigenpairs found = largest(matrix, options, seed);
    ASSERT_EQ(found.values.size(), 10U);
    if (n > 151) {
      // A copy may be missed: each value found is one of the matrix all the same.
      for (size_t i = 0; i < 10; ++i) {
        const double nearest = (values - found.values[i]).abs().min().item<double>();
        EXPECT_LE(nearest, found.bounds[i]) << i;
      }
    } else {
      expect_within_bounds(found, top);
      for (size_t i = 0; i < 10; ++i) EXPECT_NEAR(found.values[i], top[i], 0.02) << i;
    }
    const at::Tensor gram = at::mm(found.vectors, found.vectors.t());
    EXPECT_LT((gram - at::eye(10, kWide)).abs().max().item<double>(), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Dimensions, RepeatedEigenvalues, ::testing::Values(40, 150, 151, 400));

TEST(Krylov, ABoundSaysWhatCouldNotBeTold) {
  // Ten copies each: more than so many products find.
  const at::Tensor values = at::linspace(0, 1, 400, kWide);
  values.narrow(0, 0, 40).copy_(at::arange(40, kWide).div(10, "floor").neg().add(9));
  const at::Tensor matrix = with_spectrum(values, 5);
  EigenOptions options;
  options.count = 10;
  options.max_products = 30;
  options.repeated = true;
  const Eigenpairs found = largest(matrix, options, 1);
  EXPECT_FALSE(found.converged);
  expect_within_bounds(found, std::vector<double>(10, 9.0));
}

TEST(Krylov, FewDimensionsAtEveryStep) {
  // Warm starts and random parts must not cancel.
  for (const int64_t n : {1, 2, 3}) {
    WarmLanczos lanczos;
    const at::Tensor matrix = at::diag(at::arange(1, n + 1, kWide));
    for (int64_t step = 0; step < 200; ++step) {
      StepView view;
      view.step = step;
      view.seed = 11;
      EigenOptions options;
      options.count = 10;
      const Eigenpairs found = lanczos.largest(map_of(matrix), n, kWide, options, view, 6);
      ASSERT_TRUE(found.finite) << n << " " << step;
      ASSERT_EQ(found.values.size(), static_cast<size_t>(n));
      ASSERT_NEAR(found.values[0], static_cast<double>(n), 1e-10) << n << " " << step;
    }
  }
}

TEST(Traces, OfFewDimensionsAreExact) {
  for (const int64_t n : {int64_t{1}, int64_t{6}, int64_t{59}, kExactDiagonal}) {
    const at::Tensor matrix = with_spectrum(at::linspace(-1, 3, n, kWide), 7);
    int64_t products = 0;
    const DiagonalSamples found = sample_diagonal(
        [&](const at::Tensor& v) {
          ++products;
          return at::mv(matrix, v);
        },
        n, [&] { return at::ones({n}, kWide); });
    EXPECT_LT((found.exact - matrix.diagonal()).abs().max().item<double>(), 1e-14);
    EXPECT_EQ(found.samples.abs().max().item<double>(), 0);
    EXPECT_EQ(products, n);
  }
}

}  // namespace
}  // namespace tycho
