#include "matrix/largest_singular_values.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "matrix/kernels.h"

namespace tycho {
namespace {

/// A symmetric tridiagonal matrix of few rows, as Lanczos lets it grow.
class Tridiagonal {
 public:
  /// `coupling`: to the row that may come next; 0: there is none.
  void grow(double diagonal, double coupling) {
    diagonal_.push_back(diagonal);
    coupling_.push_back(coupling);
  }

  double largest_eigenvalue() const {
    double low = std::numeric_limits<double>::infinity();
    double high = -low;
    for (size_t i = 0; i < diagonal_.size(); ++i) {
      const double radius = above(i) + (i + 1 < diagonal_.size() ? coupling_[i] : 0);
      low = std::min(low, diagonal_[i] - radius);
      high = std::max(high, diagonal_[i] + radius);
    }
    const double resolution = 1e-13 * std::max(std::abs(low), std::abs(high));
    while (high - low > resolution) {
      const double middle = low + (high - low) / 2;
      if (middle == low || middle == high) break;
      (exceeds(middle) ? low : high) = middle;
    }
    return high;
  }

  /// The characteristic polynomial over the product of all couplings, the last one too: infinite
  /// where that is zero, and where it is out of range.
  double polynomial(double x) const {
    double before = 0;
    double value = 1;
    for (size_t i = 0; i < diagonal_.size(); ++i) {
      const double next = ((x - diagonal_[i]) * value - above(i) * before) / coupling_[i];
      if (!(std::abs(next) < 1e200)) return std::numeric_limits<double>::infinity();
      before = value;
      value = next;
    }
    return value;
  }

 private:
  double above(size_t i) const { return i > 0 ? coupling_[i - 1] : 0; }

  /// Whether an eigenvalue exceeds x (Sturm).
  bool exceeds(double x) const {
    double pivot = 1;
    for (size_t i = 0; i < diagonal_.size(); ++i) {
      pivot = diagonal_[i] - x - above(i) * above(i) / pivot;
      if (pivot >= 0) return true;
    }
    return false;
  }

  std::vector<double> diagonal_;
  std::vector<double> coupling_;
};

/// Lanczos of one matrix, fed with products from outside.
class Process {
 public:
  Process(const GramMatrix& matrix, const SingularValueOptions& options, at::Generator generator)
      : options_(options), n_(matrix.dimension) {
    constexpr double kDoubt = 0.01;
    constexpr double kPi = 3.14159265358979323846;
    reach_ = 1 / (kDoubt * std::sqrt(kPi / (2 * static_cast<double>(n_))));
    const at::Tensor random = at::randn({matrix.dimension}, generator, at::kDouble);
    const double* values = random.data_ptr<double>();
    next_.assign(values, values + n_);
    const double length = norm(next_);
    if (length > 0) {
      for (double& entry : next_) entry /= length;
    } else {
      next_[0] = 1;
    }
  }

  bool done() const { return done_; }
  /// To be multiplied next.
  const std::vector<double>& next() const { return next_; }

  void take(std::vector<double> product) {
    ++result_.products;
    const double length = norm(product);
    if (!std::isfinite(length)) {
      result_ = {};
      result_.finite = false;
      done_ = true;
      return;
    }
    scale_ = std::max(scale_, length);
    const double diagonal = kernels::dot(next_.data(), product.data(), n_);
    basis_.push_back(std::move(next_));
    // Twice is enough (Giraud et al. 2005).
    for (int pass = 0; pass < 2; ++pass) {
      for (const std::vector<double>& known : basis_) {
        kernels::add(-kernels::dot(known.data(), product.data(), n_), known.data(), product.data(),
                     n_);
      }
    }
    double outside = norm(product);
    // What rounding of products in float32 leaves is no direction.
    const bool closed = !(outside > 1e-6 * scale_) || static_cast<int64_t>(basis_.size()) == n_;
    if (closed) outside = 0;
    inside_.grow(diagonal, outside);
    const double largest = std::max(inside_.largest_eigenvalue(), 0.0);
    result_.value = std::sqrt(largest);
    const double accepted = largest * std::pow(1 + options_.tolerance, 2);
    const bool converged = closed || inside_.polynomial(accepted) >= reach_;
    done_ = converged || result_.products >= options_.max_products;
    if (done_) {
      result_.error = closed ? 0 : std::sqrt(bound(largest)) - result_.value;
      basis_.clear();
      return;
    }
    next_ = std::move(product);
    for (double& entry : next_) entry /= outside;
  }

  const LargestSingularValue& result() const { return result_; }

 private:
  static double norm(const std::vector<double>& vector) {
    return std::sqrt(
        kernels::dot(vector.data(), vector.data(), static_cast<int64_t>(vector.size())));
  }

  /// Where the polynomial reaches what it can reach.
  double bound(double largest) const {
    double low = largest;
    double high = largest * std::pow(1 + options_.tolerance, 2);
    while (inside_.polynomial(high) < reach_) high *= 2;
    for (int halving = 0; halving < 40; ++halving) {
      const double middle = low + (high - low) / 2;
      (inside_.polynomial(middle) < reach_ ? low : high) = middle;
    }
    return high;
  }

  SingularValueOptions options_;
  int64_t n_;
  double reach_ = 0;
  std::vector<std::vector<double>> basis_;
  std::vector<double> next_;
  Tridiagonal inside_;
  double scale_ = 0;
  bool done_ = false;
  LargestSingularValue result_;
};

/// Products of matrices that share a type and a device.
void multiply(const std::vector<GramMatrix>& matrices, const std::vector<size_t>& active,
              std::vector<Process>* processes) {
  int64_t total = 0;
  for (const size_t i : active) total += matrices[i].dimension;
  const at::TensorOptions options = matrices[active[0]].vectors;
  at::Tensor host = at::empty({total}, options.device(at::kCPU));
  const auto fill = [&](auto* data) {
    for (const size_t i : active) {
      for (const double entry : (*processes)[i].next()) {
        *data++ = static_cast<std::remove_reference_t<decltype(*data)>>(entry);
      }
    }
  };
  const bool wide = host.scalar_type() == at::kDouble;
  if (wide) {
    fill(host.data_ptr<double>());
  } else {
    fill(host.data_ptr<float>());
  }
  const at::Tensor vectors = host.to(options.device());
  const size_t count = active.size();
  std::vector<int64_t> begin(count, 0);
  for (size_t k = 1; k < count; ++k) {
    begin[k] = begin[k - 1] + matrices[active[k - 1]].dimension;
  }
  std::vector<at::Tensor> products(count);
  std::vector<size_t> side_by_side;
  const auto form = [&](size_t k) {
    const GramMatrix& matrix = matrices[active[k]];
    products[k] = matrix.product(vectors.narrow(0, begin[k], matrix.dimension)).reshape({-1});
  };
  for (size_t k = 0; k < count; ++k) {
    if (matrices[active[k]].one_thread) {
      side_by_side.push_back(k);
    } else {
      form(k);
    }
  }
  at::parallel_for(0, static_cast<int64_t>(side_by_side.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) form(side_by_side[static_cast<size_t>(i)]);
  });
  const at::Tensor arrived = at::cat(products).to(at::kCPU);
  const auto hand_out = [&](const auto* data) {
    at::parallel_for(0, static_cast<int64_t>(count), 1, [&](int64_t from, int64_t to) {
      for (auto k = static_cast<size_t>(from); k < static_cast<size_t>(to); ++k) {
        const auto* entries = data + begin[k];
        (*processes)[active[k]].take(
            std::vector<double>(entries, entries + matrices[active[k]].dimension));
      }
    });
  };
  if (wide) {
    hand_out(arrived.data_ptr<double>());
  } else {
    hand_out(arrived.data_ptr<float>());
  }
}

}  // namespace

std::vector<LargestSingularValue> largest_singular_values(const std::vector<GramMatrix>& matrices,
                                                          const SingularValueOptions& options,
                                                          at::Generator generator) {
  std::vector<Process> processes;
  processes.reserve(matrices.size());
  for (const GramMatrix& matrix : matrices) processes.emplace_back(matrix, options, generator);
  for (;;) {
    std::vector<std::vector<size_t>> groups;
    for (size_t i = 0; i < matrices.size(); ++i) {
      if (processes[i].done()) continue;
      const auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& members) {
        const at::TensorOptions& first = matrices[members[0]].vectors;
        return first.device() == matrices[i].vectors.device() &&
               first.dtype() == matrices[i].vectors.dtype();
      });
      if (group == groups.end()) {
        groups.push_back({i});
      } else {
        group->push_back(i);
      }
    }
    if (groups.empty()) break;
    for (const std::vector<size_t>& active : groups) multiply(matrices, active, &processes);
  }
  std::vector<LargestSingularValue> results;
  results.reserve(processes.size());
  for (const Process& process : processes) results.push_back(process.result());
  return results;
}

}  // namespace tycho
