#include "src/loss/loss_course.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace tycho::analyzer {
namespace {

constexpr size_t kRecent = 64;
constexpr size_t kFewestRecent = 16;
constexpr double kBeyondRecent = 4;       // times the largest recent distance from the median
constexpr double kBeyondRecentLog = 2.5;  // the same in logarithms, for heavy tails
constexpr double kShareOfRange = 0.1;     // of all losses so far

}  // namespace

double start_of(const std::vector<LossStretch>& all) {
  double first[3] = {all[0].mean, all[1].mean, all[2].mean};
  std::sort(std::begin(first), std::end(first));
  return first[1];
}

void LossCourse::observe(const RunContext& context, const Frame& frame) {
  if (column_ == kNoColumn) {
    held_out_column_ = context.column("validation_loss", v1::SCOPE_RUN);
    column_ = context.column("loss", v1::SCOPE_RUN);
    weights_ = context.column("weight_norm_sq", v1::SCOPE_RUN);
    rate_ = context.column("learning_rate", v1::SCOPE_RUN);
  }
  const ColumnValues weights = frame.column(weights_);
  if (weights.present && is_measured(weights[0])) add_weights(weights[0]);
  const ColumnValues loss = frame.column(column_);
  if (loss.present && is_measured(loss[0])) add(frame.step(), loss[0], frame.column(rate_)[0]);
  const ColumnValues held_out = frame.column(held_out_column_);
  if (held_out.present && is_measured(held_out[0])) add_held_out(frame.step(), held_out[0]);
}

void LossCourse::add_held_out(int64_t step, double loss) {
  const LossPoint point{step, loss};
  if (step <= held_out_.last.step) held_out_.stretches.rewind(step);
  held_out_.last = point;
  if (held_out_.observed++ == 0) held_out_.first = point;
  if (std::isfinite(loss)) {
    held_out_.stretches.add(point);
  } else {
    ++held_out_.not_finite;
  }
}

void LossCourse::add_weights(double norm_sq) {
  if (std::isnan(norm_sq)) norm_sq = std::numeric_limits<double>::infinity();
  if (std::isnan(first_weights_)) first_weights_ = largest_weights_ = norm_sq;
  largest_weights_ = std::max(largest_weights_, norm_sq);
}

double LossCourse::weight_growth() const {
  return first_weights_ > 0 && std::isfinite(first_weights_) ? largest_weights_ / first_weights_
                                                             : kUnknown;
}

void LossCourse::add(int64_t step, double loss, double rate) {
  const LossPoint point{step, loss};
  const LossPoint before = last_;
  if (observed_++ == 0) first_ = point;
  last_ = point;
  if (!std::isfinite(loss)) {
    if (not_finite_++ == 0) {
      first_not_finite_ = point;
      before_not_finite_ = before;
    }
    finite_again_ = {};
    return;
  }
  if (not_finite_ > 0 && finite_again_.step < 0) finite_again_ = point;
  follow_breaks(step, loss);
  if (lowest_.step < 0 || loss < lowest_.value) lowest_ = point;
  if (highest_.step < 0 || loss > highest_.value) highest_ = point;
  if (early_.size() < kEarly) early_.push_back(point);
  stretches_.add(point, rate);
}

std::vector<LossStretch> LossCourse::stretches_from_the_first() const {
  const std::vector<LossStretch> whole = stretches();
  if (stretches_.per_stretch() == 1) return whole;
  std::vector<LossStretch> result;
  for (const LossPoint& point : early_) result.push_back(single_loss(point));
  uint64_t before = 0;
  for (const LossStretch& stretch : whole) {
    if (before >= early_.size()) result.push_back(stretch);
    before += stretch.count;
  }
  return result;
}

void LossCourse::follow_breaks(int64_t step, double loss) {
  if (open_.begin >= 0) {
    if (loss > back_below_) {
      ++open_.count;
      if (loss > open_.peak.value) open_.peak = {step, loss};
      return;
    }
    open_.back = step;
    ++break_count_;
    breaks_.push_back(open_);
    std::stable_sort(breaks_.begin(), breaks_.end(),
                     [](const LossBreak& a, const LossBreak& b) { return a.rise() > b.rise(); });
    if (breaks_.size() > kMostBreaks) breaks_.pop_back();
    open_ = {};
  }
  if (recent_.size() >= kFewestRecent) {
    std::vector<double> sorted = recent_;
    std::sort(sorted.begin(), sorted.end());
    const double usual = sorted[sorted.size() / 2];
    const double spread = sorted.back() - usual;
    const double rise = loss - usual;
    const double ratio = sorted.front() > 0
                             ? std::max(sorted.back() / usual, usual / sorted.front())
                             : 1;  // of a loss with zeros or signs there are no logarithms
    if (rise > kBeyondRecent * spread &&
        (ratio == 1 || loss > usual * std::pow(ratio, kBeyondRecentLog)) &&
        rise > std::fabs(usual) && rise > kShareOfRange * (highest_.value - lowest_.value)) {
      open_ = {{step, loss}, step, -1, usual, 1};
      back_below_ = usual + std::max(2 * spread, 0.1 * rise);
      return;
    }
  }
  if (recent_.size() < kRecent) {
    recent_.push_back(loss);
    return;
  }
  recent_[next_] = loss;
  next_ = (next_ + 1) % kRecent;
}

}  // namespace tycho::analyzer
