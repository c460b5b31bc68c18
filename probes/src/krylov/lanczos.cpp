#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <tuple>

#include "tycho/krylov.h"

namespace tycho {
namespace {

/// In the vector's own type where its squares have room there: a copy in float64 takes longer than
/// the sum, which LibTorch adds up in pairs.
double norm_of(const at::Tensor& vector) {
  constexpr double kLeast = 1e-15;
  constexpr double kMost = 1e15;
  const double own = vector.norm().item<double>();
  if (own > kLeast && own < kMost) return own;
  return vector.norm(2, at::kDouble).item<double>();
}

/// Eigenvalues descending, with eigenvectors as columns; float64 on the CPU.
std::pair<at::Tensor, at::Tensor> small_eigen(const at::Tensor& matrix) {
  const auto [values, vectors] = at::linalg_eigh(matrix);
  return {values.flip(0).contiguous(), vectors.flip(1).contiguous()};
}

/// An orthonormal basis that grows, with the matrix as it acts inside.
class Basis {
 public:
  Basis(const LinearMap& matrix, const at::Tensor& start, int64_t capacity, int64_t first_rows)
      : matrix_(matrix),
        capacity_(capacity),
        vectors_(at::empty({std::min(capacity, first_rows), start.size(0)}, start.options())),
        inside_(at::zeros({capacity, capacity}, at::kDouble)) {
    const double length = norm_of(start);
    next_ = start / length;
    finite_ = std::isfinite(length) && length > 0;
  }

  int64_t size() const { return size_; }
  bool finite() const { return finite_; }
  /// Length of what the last product has outside the basis.
  double outside() const { return outside_; }
  at::Tensor inside() const { return inside_.narrow(0, 0, size_).narrow(1, 0, size_); }
  at::Tensor vectors() const { return vectors_.narrow(0, 0, size_); }
  bool full() const { return size_ == capacity_; }

  /// Takes the next vector in and multiplies it.
  void grow() {
    make_room();
    vectors_[size_].copy_(next_);
    at::Tensor product = matrix_(next_);
    const double length = norm_of(product);
    if (!std::isfinite(length)) {
      finite_ = false;
      return;
    }
    ++size_;
    scale_ = std::max(scale_, length);
    at::Tensor column = at::zeros({size_}, at::kDouble);
    product = product.clone();
    // What the three-term recurrence says is there goes first, so that one pass over the whole
    // basis finds rounding only; where it finds more (after a restart), a second one is enough
    // (Giraud et al. 2005).
    remove(std::max<int64_t>(size_ - 2, 0), &product, &column);
    double before = norm_of(product);
    for (int pass = 0; pass < 2; ++pass) {
      remove(0, &product, &column);
      outside_ = norm_of(product);
      if (outside_ > kKept * before) break;
      before = outside_;
    }
    inside_[size_ - 1].narrow(0, 0, size_).copy_(column);
    inside_.select(1, size_ - 1).narrow(0, 0, size_).copy_(column);
    const double rounding = product.scalar_type() == at::kDouble ? 1e-13 : 1e-6;
    closed_ = !(outside_ > rounding * scale_);
    if (!closed_) next_ = product.div_(outside_);
  }

  /// Whether the basis is invariant: nothing is outside.
  bool closed() const { return closed_; }

  /// Goes on from an invariant space in a random direction. False: there is none left.
  bool escape(at::Generator generator) {
    if (size_ >= vectors_.size(1)) return false;
    at::Tensor direction =
        at::randn({vectors_.size(1)}, generator, at::TensorOptions()).to(vectors_.options());
    for (int pass = 0; pass < 2; ++pass) {
      direction.sub_(at::mv(vectors().t(), at::mv(vectors(), direction)));
    }
    const double length = norm_of(direction);
    if (!(length > 0)) return false;
    next_ = direction.div_(length);
    outside_ = 0;
    closed_ = false;
    return true;
  }

  /// Keeps the leading Ritz vectors (columns of `rotation`) and their values.
  void restart(const at::Tensor& values, const at::Tensor& rotation, int64_t kept) {
    const at::Tensor leading = rotation.narrow(1, 0, kept).t().to(vectors_.options());
    const at::Tensor compressed = at::mm(leading, vectors());
    vectors_.narrow(0, 0, kept).copy_(compressed);
    inside_.zero_();
    inside_.diagonal().narrow(0, 0, kept).copy_(values.narrow(0, 0, kept));
    size_ = kept;
  }

 private:
  static constexpr double kKept = 0.7;

  /// Takes from `product` its part in the basis' vectors from `first` on, and adds it to `column`.
  void remove(int64_t first, at::Tensor* product, at::Tensor* column) const {
    const at::Tensor known = vectors_.narrow(0, first, size_ - first);
    const at::Tensor part = at::mv(known, *product);
    product->sub_(at::mv(known.t(), part));
    column->narrow(0, first, size_ - first).add_(part.to(at::kCPU, at::kDouble));
  }

  void make_room() {
    const int64_t rows = vectors_.size(0);
    if (size_ < rows) return;
    at::Tensor more =
        at::empty({std::min(capacity_, 2 * rows), vectors_.size(1)}, vectors_.options());
    more.narrow(0, 0, rows).copy_(vectors_);
    vectors_ = std::move(more);
  }

  const LinearMap& matrix_;
  int64_t capacity_;
  at::Tensor vectors_;
  at::Tensor inside_;
  at::Tensor next_;
  int64_t size_ = 0;
  double outside_ = 0;
  double scale_ = 0;
  bool closed_ = false;
  bool finite_ = true;
};

/// Bounds from residuals, see largest_eigenpairs.
std::vector<double> residual_bounds(const double* values, const std::vector<double>& residuals,
                                    int64_t count) {
  const auto size = static_cast<int64_t>(residuals.size());
  std::vector<double> bounds;
  for (int64_t i = 0; i < count; ++i) {
    double bound = residuals[static_cast<size_t>(i)];
    double squares = 0;
    for (int64_t m = 0; m < size; ++m) {
      squares += residuals[static_cast<size_t>(m)] * residuals[static_cast<size_t>(m)];
      if (m < i || m + 1 >= size) continue;
      const double beyond = values[m + 1] + residuals[static_cast<size_t>(m + 1)];
      if (beyond < values[i]) bound = std::min(bound, squares / (values[i] - beyond));
    }
    // What lies beyond is an estimate: doubled.
    bounds.push_back(2 * bound);
  }
  return bounds;
}

/// Where eigenvalues can be, given the logarithm of the largest |p| they may have.
class ProbableIntervals {
 public:
  ProbableIntervals(const double* values, int64_t size, double log_limit)
      : values_(values), size_(size), log_limit_(log_limit) {}

  /// Distance from Ritz value i to the farther end of its interval.
  double bound(int64_t i) const {
    return std::max(end(i, -1) - values_[i], values_[i] - end(i, 1));
  }
  /// Whether the bounds of the first `count` are seen to be at most `size`: no eigenvalue is at
  /// that distance, or half of it, on either side.
  bool all_within(int64_t count, double size) const {
    // The lowest converges last.
    for (int64_t i = count - 1; i >= 0; --i) {
      for (const double side : {size, -size}) {
        if (!outside(values_[i] + side) && !outside(values_[i] + side / 2)) return false;
      }
    }
    return true;
  }

 private:
  double log_polynomial(double at) const {
    double sum = 0;
    for (int64_t i = 0; i < size_; ++i) {
      sum += std::log(std::max(std::abs(at - values_[i]), std::numeric_limits<double>::min()));
    }
    return sum;
  }
  bool outside(double at) const { return log_polynomial(at) > log_limit_; }

  /// The end of the interval of Ritz value i: upwards with direction -1, downwards with 1.
  double end(int64_t i, int64_t direction) const {
    for (;; i += direction) {
      const int64_t next = i + direction;
      double far = 0;
      if (next >= 0 && next < size_) {
        // Between two roots there is one maximum: by golden sections.
        double a = values_[i];
        double b = values_[next];
        constexpr double kGolden = 0.6180339887498949;
        for (int step = 0; step < 40; ++step) {
          const double c = b - kGolden * (b - a);
          const double d = a + kGolden * (b - a);
          (log_polynomial(c) > log_polynomial(d) ? b : a) =
              log_polynomial(c) > log_polynomial(d) ? d : c;
        }
        far = (a + b) / 2;
        if (!outside(far)) continue;  // One interval holds both.
      } else {
        double step = std::max(std::abs(values_[0] - values_[size_ - 1]),
                               std::max(std::abs(values_[0]), 1e-300));
        const double away = direction < 0 ? 1 : -1;
        far = values_[i] + away * step;
        while (!outside(far) && std::isfinite(far)) far = values_[i] + away * (step *= 2);
        if (!std::isfinite(far)) return far;
      }
      double near = values_[i];
      for (int step = 0; step < 60; ++step) {
        const double middle = (near + far) / 2;
        (outside(middle) ? far : near) = middle;
      }
      return far;
    }
  }

  const double* values_;
  int64_t size_;
  double log_limit_;
};

/// Whether the matrix is still about what it was, see EigenOptions.
bool as_expected(const EigenOptions& options, double value, const at::Tensor& basis,
                 const at::Tensor& coefficients) {
  if (!options.expected_directions.defined()) return false;
  if (std::abs(value - options.expected) > 0.1 * std::abs(options.expected)) return false;
  const at::Tensor vector = at::mv(basis.t(), coefficients.to(basis.options()));
  return norm_of(at::mv(options.expected_directions, vector)) > 0.9;
}

/// What the largest Ritz value will still rise, from the last three: they rise geometrically.
double remaining_rise(const std::vector<double>& largest) {
  if (largest.size() < 4) return std::numeric_limits<double>::infinity();
  const double* last = largest.data() + largest.size() - 1;
  const double rise = last[0] - last[-1];
  const double ratio = std::min(rise / std::max(last[-1] - last[-2], 1e-300), 0.95);
  return rise * ratio / (1 - ratio);
}

/// Logarithm of a lower bound on |v.q_1| for an eigenvector v, wrong with probability 1e-3.
double log_least_overlap(double random_part, int64_t dimension) {
  constexpr double kRisk = 1e-3;
  constexpr double kHalfPi = 1.5707963267948966;
  return std::log(kRisk * random_part * std::sqrt(kHalfPi / static_cast<double>(dimension)) /
                  std::sqrt(1 + random_part * random_part));
}

/// From one start. Stops too when the largest eigenvalue is below `ceiling`, bound included.
Eigenpairs from_one_start(const LinearMap& matrix, const at::Tensor& start,
                          const EigenOptions& options, at::Generator generator,
                          double ceiling = -std::numeric_limits<double>::infinity()) {
  const int64_t dimension = start.size(0);
  const int64_t count = std::min(options.count, dimension);
  constexpr int64_t kMemory = int64_t{1} << 30;
  const int64_t affordable =
      kMemory / std::max<int64_t>(1, dimension * static_cast<int64_t>(start.element_size()));
  const int64_t least = std::max<int64_t>(24, 2 * count + 16);
  const int64_t capacity =
      std::min(dimension, std::min(std::max(least, affordable), options.max_products));
  const double rounding = start.scalar_type() == at::kDouble ? 1e-13 : 1e-6;
  const bool all = count > 1 && dimension <= options.max_products;
  const int64_t kept = std::min(capacity - 1, count + (capacity - count) / 3);
  // For one value a few products are enough most times. Rows for all that are allowed would be
  // memory that the system maps anew, page by page, at each run, which can take longer than the
  // products.
  constexpr int64_t kFewRows = 12;
  Basis basis(matrix, start, capacity, count == 1 ? kFewRows : capacity);
  Eigenpairs result;
  at::Tensor values;
  at::Tensor rotation;
  bool probable = options.random_part > 0;
  double log_betas = 0;
  while (basis.finite() && result.products < options.max_products) {
    if (basis.full()) {
      if (kept < count) break;
      basis.restart(values, rotation, kept);
      probable = false;
    }
    basis.grow();
    ++result.products;
    if (!basis.finite()) break;
    std::tie(values, rotation) = small_eigen(basis.inside());
    const bool complete = basis.size() == dimension;
    const double* ritz = values.data_ptr<double>();
    const int64_t found = std::min(count, basis.size());
    result.values.assign(ritz, ritz + found);
    log_betas += std::log(std::max(basis.outside(), 1e-300));
    result.history.push_back(ritz[0]);
    const double last = std::abs(ritz[basis.size() - 1]);
    const double size = std::max(std::abs(ritz[0]), last * 1e-3);
    const bool expected = as_expected(options, ritz[0], basis.vectors(), rotation.select(1, 0));
    if (complete) {
      result.bounds.assign(static_cast<size_t>(found), 0);
    } else if (probable && !basis.closed() && !expected) {
      const ProbableIntervals intervals(
          ritz, basis.size(), log_betas - log_least_overlap(options.random_part, dimension));
      // An interval takes long to find: not before it is known to be short enough.
      const bool wanted = result.products >= options.max_products || basis.full() ||
                          std::isfinite(ceiling) ||
                          intervals.all_within(found, options.tolerance * size);
      result.bounds.assign(static_cast<size_t>(found), std::numeric_limits<double>::infinity());
      for (int64_t i = 0; wanted && i < found; ++i)
        result.bounds[static_cast<size_t>(i)] = intervals.bound(i);
    } else {
      std::vector<double> residuals;
      for (int64_t i = 0; i < basis.size(); ++i) {
        residuals.push_back(basis.outside() *
                            std::abs(rotation[basis.size() - 1][i].item<double>()));
      }
      result.bounds = residual_bounds(ritz, residuals, found);
    }
    for (double& bound : result.bounds) {
      bound = std::max(bound, rounding * std::max(std::abs(ritz[0]), last));
    }
    const bool tight = std::all_of(result.bounds.begin(), result.bounds.end(),
                                   [&](double bound) { return bound <= options.tolerance * size; });
    // Values are as good as asked for long before their bounds say so.
    const bool settled = expected && count == 1 &&
                         2 * remaining_rise(result.history) <= options.tolerance * size &&
                         result.bounds[0] <= 50 * options.tolerance * size;
    // A start with a random part has a part in every eigenspace, so that an invariant space misses
    // repetitions only.
    result.converged =
        found == count &&
        (complete || (!all && (basis.closed() || (basis.size() > count && (tight || settled)))));
    if (result.converged || complete || ritz[0] + result.bounds[0] <= ceiling) break;
    if (basis.closed()) {
      probable = false;
      if (!basis.escape(generator)) break;
    }
  }
  if (!basis.finite()) {
    result = Eigenpairs();
    result.finite = false;
    return result;
  }
  result.whole = basis.size() == dimension;
  const auto found = static_cast<int64_t>(result.values.size());
  result.vectors = at::mm(rotation.narrow(1, 0, found).t().to(start.options()), basis.vectors());
  const int64_t leading = std::min(found + 2, basis.size());
  result.leading = at::mm(rotation.narrow(1, 0, leading).t().to(start.options()), basis.vectors());
  return result;
}

/// Outside the vectors of `found` the largest eigenvalue is found again and again, and put in where
/// it belongs, until it is below all of them.
void add_repeated(const LinearMap& matrix, const EigenOptions& options, at::Generator generator,
                  Eigenpairs* found) {
  constexpr int64_t kMostEach = 60;
  constexpr double kOnlyRandom = 1e3;
  const auto count = static_cast<int64_t>(found->values.size());
  int64_t left = options.max_products;
  double reach = std::numeric_limits<double>::infinity();  // of what may be hidden
  bool told = false;
  while (!told && left > 0) {
    const at::Tensor known = found->vectors;
    const auto outside = [&](const at::Tensor& vector) {
      return vector - at::mv(known.t(), at::mv(known, vector));
    };
    const at::Tensor start =
        outside(at::randn({known.size(1)}, generator, at::TensorOptions()).to(known.options()));
    EigenOptions one;
    one.tolerance = options.tolerance;
    one.max_products = std::min(left, kMostEach);
    one.random_part = kOnlyRandom;
    const double least = found->values.back();
    const Eigenpairs other =
        from_one_start([&](const at::Tensor& v) { return outside(matrix(outside(v))); }, start, one,
                       generator, least);
    left -= other.products;
    found->products += other.products;
    if (!other.finite) {
      *found = Eigenpairs();
      found->finite = false;
      return;
    }
    reach = other.values[0] + other.bounds[0];
    const double slack = 2 * options.tolerance * std::abs(found->values[0]);
    if (other.values[0] <= least + slack) {
      told = true;
      break;
    }
    const auto place = std::upper_bound(found->values.begin(), found->values.end(), other.values[0],
                                        std::greater<double>());
    const auto at = static_cast<int64_t>(place - found->values.begin());
    found->bounds.insert(found->bounds.begin() + at, other.bounds[0]);
    found->values.insert(place, other.values[0]);
    found->values.pop_back();
    found->bounds.pop_back();
    found->vectors = at::cat({known.narrow(0, 0, at), other.vectors.narrow(0, 0, 1),
                              known.narrow(0, at, count - 1 - at)});
  }
  // Where it was not told, as much as the largest may be hidden still.
  if (!told) reach = std::max(reach, found->values[0] + found->bounds[0]);
  found->converged = found->converged && told;
  for (size_t i = 0; i < found->values.size(); ++i) {
    if (reach > found->values[i]) {
      found->bounds[i] = std::max(found->bounds[i], reach - found->values[i]);
    }
  }
}

}  // namespace

namespace {

/// Widens the bounds to the residuals as they are: several starts are joined, and what they say of
/// themselves does not cover what they do not know of each other. Costs a product for each pair.
void prove_residuals(const LinearMap& matrix, Eigenpairs* found) {
  for (size_t i = 0; i < found->values.size(); ++i) {
    const at::Tensor vector = found->vectors[static_cast<int64_t>(i)];
    const double norm = vector.norm().item<double>();
    const at::Tensor residual = matrix(vector) - vector * found->values[i];
    const double bound = norm > 0 ? residual.norm().item<double>() / norm : INFINITY;
    if (!(found->bounds[i] >= bound)) found->bounds[i] = bound;
  }
}

}  // namespace

Eigenpairs largest_eigenpairs(const LinearMap& matrix, const at::Tensor& start,
                              const EigenOptions& options, at::Generator generator) {
  Eigenpairs found = from_one_start(matrix, start, options, generator);
  const bool enough = !found.finite || found.whole || found.values.size() < 2;
  if (options.repeated && !enough) {
    add_repeated(matrix, options, generator, &found);
    prove_residuals(matrix, &found);
  }
  return found;
}

Quadrature lanczos_quadrature(const LinearMap& matrix, const at::Tensor& start, int64_t steps) {
  const int64_t capacity = std::min(steps, start.size(0));
  Basis basis(matrix, start, capacity, capacity);
  Quadrature result;
  while (basis.finite() && !basis.full() && !basis.closed()) basis.grow();
  result.finite = basis.finite();
  if (!result.finite || basis.size() == 0) return result;
  const auto [values, rotation] = small_eigen(basis.inside());
  for (int64_t i = 0; i < basis.size(); ++i) {
    const double overlap = rotation[0][i].item<double>();
    result.nodes.push_back(values[i].item<double>());
    result.weights.push_back(overlap * overlap);
  }
  return result;
}

}  // namespace tycho
