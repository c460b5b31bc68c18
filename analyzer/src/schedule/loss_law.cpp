#include "src/schedule/loss_law.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tycho::analyzer {
namespace {

constexpr double kSmallestRate = 1e-4;  // over the peak
constexpr double kJump = 0.1;           // of the peak

/// A change of the learning rate, in the law's units.
struct Change {
  double fall;
  double log_rate;  // of the rate behind it
  double sum;
  double step;
};

std::vector<Change> changes_of(const LossCurve& curve, const LossLaw& law) {
  std::vector<Change> result;
  LossCurvePoint before;  // at step 0 the rate rises from 0
  for (const LossCurvePoint& point : curve) {
    const double fall = (before.rate - point.rate) / law.peak;
    // Halfway between the points; a jump is at the second of them.
    const double share = std::fabs(fall) > kJump ? 1 : 0.5;
    if (fall != 0) {
      result.push_back({fall, std::log(std::max(kSmallestRate, point.rate / law.peak)),
                        (before.sum + share * (point.sum - before.sum)) / law.length,
                        (before.step + share * (point.step - before.step)) / law.steps});
    }
    before = point;
  }
  return result;
}

/// Of changes that relax exponentially, from step to step.
struct Relaxation {
  explicit Relaxation(double time) : time(time) {}
  double time;
  double now = 0;
  double fallen = 0;        // sum of the changes so far
  double left = 0;          // sum of what is not set free of them
  double left_by_time = 0;  // the same, each times the steps since, over the time
  size_t next = 0;

  void go_to(double step, const std::vector<Change>& changes) {
    while (next < changes.size() && changes[next].step < step) {
      pass(changes[next].step);
      fallen += changes[next].fall;
      left += changes[next].fall;
      ++next;
    }
    pass(step);
  }
  void pass(double step) {
    const double passed = std::max(0.0, step - now) / time;
    const double factor = std::exp(-passed);
    left_by_time = factor * (left_by_time + passed * left);
    left *= factor;
    now = std::max(now, step);
  }
};

}  // namespace

const char* to_string(LossForm form) {
  switch (form) {
    case LossForm::kPower:
      return "power law";
    case LossForm::kAnnealing:
      return "annealing law";
    case LossForm::kMultiPower:
      return "multi-power law";
  }
  return "";
}

Eigen::Index LossLaw::parameters() const {
  return form == LossForm::kPower ? 3 : form == LossForm::kAnnealing ? 5 : 7;
}

void LossLaw::evaluate(const LossCurve& curve, const Eigen::VectorXd& parameters,
                       Eigen::VectorXd* value, Eigen::MatrixXd* derivative) const {
  const auto size = static_cast<Eigen::Index>(curve.size());
  const Eigen::VectorXd p = parameters.array().exp();
  value->setConstant(size, p[0]);
  if (derivative != nullptr) derivative->setZero(size, this->parameters());
  const std::vector<Change> changes =
      form == LossForm::kPower ? std::vector<Change>() : changes_of(curve, *this);
  std::vector<double> speed;  // of what a fall sets free, in units of the sum of rates
  if (form == LossForm::kMultiPower) {
    for (const Change& change : changes) speed.push_back(p[4] * std::exp(-p[6] * change.log_rate));
  }
  Relaxation relaxation(form == LossForm::kAnnealing ? p[4] : 1);
  for (Eigen::Index i = 0; i < size; ++i) {
    const LossCurvePoint& point = curve[static_cast<size_t>(i)];
    const double sum = point.sum / length;
    if (!(sum > 0)) {
      (*value)[i] = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    const double log_sum = std::log(sum);
    const double power = p[1] * std::exp(-p[2] * log_sum);
    (*value)[i] += power;
    double freed = 0;
    double by[3] = {0, 0, 0};
    if (form == LossForm::kAnnealing) {
      relaxation.go_to(point.step / steps, changes);
      freed = relaxation.fallen - relaxation.left;
      by[0] = -relaxation.left_by_time;
    }
    for (size_t k = 0; form == LossForm::kMultiPower && k < changes.size(); ++k) {
      const Change& change = changes[k];
      const double since = speed[k] * (sum - change.sum);
      if (since <= 0) break;
      const double log_base = std::log1p(since);
      const double left = std::exp(-p[5] * log_base);
      freed += change.fall * (1 - left);
      const double along = change.fall * p[5] * left * since / (1 + since);
      by[0] += along;
      by[1] += change.fall * left * log_base * p[5];
      by[2] -= along * change.log_rate * p[6];
    }
    if (form != LossForm::kPower) (*value)[i] -= p[3] * freed;
    if (derivative == nullptr) continue;
    auto row = derivative->row(i);
    row[0] = p[0];
    row[1] = power;
    row[2] = -power * log_sum * p[2];
    if (form == LossForm::kPower) continue;
    row[3] = -p[3] * freed;
    for (Eigen::Index j = 4; j < this->parameters(); ++j) row[j] = -p[3] * by[j - 4];
  }
}

std::vector<double> LossLaw::constants(const Eigen::VectorXd& parameters) const {
  const Eigen::VectorXd p = parameters.array().exp();
  std::vector<double> result = {p[0], p[1] * std::pow(length, p[2]), p[2]};
  if (form == LossForm::kAnnealing) {
    const double lambda = std::exp(-1 / (p[4] * steps));
    result.insert(result.end(), {p[3] / peak * (1 - lambda), lambda});
  } else if (form == LossForm::kMultiPower) {
    result.insert(result.end(), {p[3] / peak, p[4] * std::pow(peak, p[6]) / length, p[5], p[6]});
  }
  return result;
}

}  // namespace tycho::analyzer
