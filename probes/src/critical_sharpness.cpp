#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

constexpr int64_t kMaxValues = 8;
constexpr double kCriticalTolerance = 0.01;

/// 2/eta_c with eta_c the smallest step along the update's direction at which the probe loss is
/// back at its start (arXiv 2601.16979): curvature along the update from forward passes only. With
/// f(s) = L(theta + s u) - L(theta), theta before the update u, the root of f(s)/s, which is a line
/// for a quadratic, is found by secants from s = 1 and from the root found last, to 1 %, with at
/// most 8 values of the loss. For gradient descent on a quadratic it is g'Hg/g'g, for a
/// preconditioned step g'P^-1 H P^-1 g / g'P^-1 g: never above the (preconditioned) sharpness. Not
/// recorded where no root is found: the loss rises from the start, or falls as far as was looked.
class CriticalSharpnessProbe : public Probe {
 public:
  std::string name() const override { return "critical_sharpness"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("critical_sharpness", "2/eta_c", "1", run,
                         "2/eta_c, eta_c the smallest step along the update at which the probe "
                         "loss is not below its start.",
                         "arXiv 2601.16979"),
        define_statistic("critical_sharpness_values", "n_L", "evaluations", run,
                         "Forward passes spent on critical_sharpness.", "arXiv 2601.16979"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.loss_surface = needs.update = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    LossSurface* surface = step.surface;
    if (surface == nullptr || !step.update.defined() || step.optimizer->group_size() == 0) {
      return nullptr;
    }
    const double rate = step.optimizer->group(0).learning_rate();
    if (!(rate > 0)) return nullptr;
    int64_t values = 0;
    const auto loss = [&](double s) {
      ++values;
      // The surface's origin is after the update.
      surface->move(s == 1 ? at::Tensor() : step.update * (s - 1));
      return surface->value().item<double>();
    };
    const double start = loss(0);
    const auto slope = [&](double s) { return (loss(s) - start) / s; };
    const double root = find_root(slope, values);
    surface->move({});
    if (root > 0) last_ = root;
    return [root, rate, values](const Arrived&, Recorder& recorder) {
      recorder.run("critical_sharpness_values", static_cast<double>(values), Recorder::kUnknown);
      if (root > 0) recorder.run("critical_sharpness", 2 / (root * rate), Recorder::kUnknown);
    };
  }

 private:
  struct Point {
    double s = 0;
    double slope = 0;
  };

  static double root_of_line(const Point& p, const Point& q) {
    return p.s - p.slope * (q.s - p.s) / (q.slope - p.slope);
  }

  /// s > 0 with slope(s) = 0, the first that is met going outwards; NaN where it is not found.
  template <typename Slope>
  double find_root(const Slope& slope, const int64_t& values) const {
    constexpr double kStride = 10;    // outwards or inwards, while nothing is known
    constexpr double kFurthest = 30;  // believed of a line through two points
    constexpr double kSignificant = 0.02;
    constexpr double kNearest = 0.01;  // nearer, the update does not descend on this loss
    const double none = std::nan("");
    Point below, above, previous;
    double next = 1;
    bool first = true;
    while (values < kMaxValues) {
      Point point{next, slope(next)};
      // What has no finite loss is beyond the root.
      if (!std::isfinite(point.slope)) point.slope = std::numeric_limits<double>::infinity();
      (point.slope < 0 ? below : above) = point;
      const double at = next;
      if (below.s > 0 && above.s > 0) {
        next =
            std::isfinite(above.slope) ? root_of_line(below, above) : std::sqrt(below.s * above.s);
        if (std::abs(above.s - below.s) <= kCriticalTolerance * next) return next;
      } else {
        const double outwards = point.slope < 0 ? kStride : 1 / kStride;
        next *= outwards;
        const bool line = !first && std::abs(point.slope - previous.slope) >
                                        kSignificant * std::abs(previous.slope);
        const double root = line ? root_of_line(previous, point) : none;
        const double ratio = root / at;
        if (ratio > 0 && (ratio > 1) == (outwards > 1) && ratio < kFurthest &&
            ratio > 1 / kFurthest) {
          next = root;
        } else if (first && last_ > 0 && (last_ > 1) == (outwards > 1)) {
          next = last_;
        }
      }
      if (!first && std::abs(next - at) <= kCriticalTolerance * next) return next;
      if (next < kNearest) return none;
      previous = point;
      first = false;
    }
    // What is enclosed is known, if not to the tolerance; the recorded value is its secant.
    const bool enclosed =
        below.s > 0 && above.s > 0 && std::isfinite(above.slope) && above.s < 1.2 * below.s;
    return enclosed ? next : none;
  }

  double last_ = 0;
};

}  // namespace

std::unique_ptr<Probe> make_critical_sharpness_probe() {
  return std::make_unique<CriticalSharpnessProbe>();
}

}  // namespace tycho
