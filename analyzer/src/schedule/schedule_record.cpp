#include "src/schedule/schedule_record.h"

#include <algorithm>
#include <cmath>

#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {
namespace {

constexpr double kJump = 0.1;   // of the peak
constexpr size_t kPooled = 12;  // bins, with those before, whose noise is pooled

}  // namespace

void ScheduleRecord::begin(const RunContext& context) {
  loss_ = context.column("loss", v1::SCOPE_RUN);
  rate_ = context.column("learning_rate", v1::SCOPE_RUN);
}

void ScheduleRecord::observe(const Frame& frame) {
  const ColumnValues loss = frame.column(loss_);
  if (!loss.present || !is_measured(loss[0])) return;
  double rate = frame.column(rate_)[0];
  if (!std::isfinite(rate) && frame.optimizer() != nullptr && frame.optimizer()->group_size() > 0)
    rate = frame.optimizer()->group(0).learning_rate();
  add(frame.step(), rate, loss[0]);
}

void ScheduleRecord::go_back(int64_t step) {
  const auto at = static_cast<double>(step);
  while (!bins_.empty() && bins_.back().step >= at) bins_.pop_back();
  last_step_ = -1;
  last_rate_ = last_sum_ = 0;
  if (!bins_.empty()) {
    last_step_ = static_cast<int64_t>(bins_.back().step);
    last_rate_ = bins_.back().rate;
    last_sum_ = bins_.back().sum;
  }
  last_log_ = kNoLog;
}

void ScheduleRecord::add(int64_t step, double rate, double loss) {
  if (step < 0) return;
  if (!(loss > 0) || !std::isfinite(loss)) {
    ++not_positive_;
    return;
  }
  ++losses_;
  if (!(rate >= 0) || !std::isfinite(rate)) {
    ++without_rate_;
    return;
  }
  if (step <= last_step_) go_back(step);
  peak_ = std::max(peak_, rate);
  const bool first = last_step_ < 0;
  const bool jumps = !first && std::fabs(rate - last_rate_) > kJump * peak_;
  const double passed =
      static_cast<double>(step) - (first ? -1.0 : static_cast<double>(last_step_));
  const double between = first ? rate : jumps ? last_rate_ : 0.5 * (last_rate_ + rate);
  last_sum_ += passed * between;
  last_rate_ = rate;
  last_step_ = step;
  if (jumps && parts_ < kMostJumps) {
    Bin at;  // where exactly, without a loss
    at.part = ++parts_;
    at.step = static_cast<double>(step);
    at.rate = rate;
    at.sum = last_sum_;
    bins_.push_back(at);
  }

  const size_t index = kFineGrid.bin(step);
  if (bins_.empty() || bins_.back().index != index || bins_.back().part != parts_ ||
      bins_.back().count == 0) {
    Bin bin;
    bin.index = index;
    bin.part = parts_;
    bins_.push_back(bin);
  }
  Bin& bin = bins_.back();
  const double share = 1 / static_cast<double>(++bin.count);
  bin.step += share * (static_cast<double>(step) - bin.step);
  bin.rate += share * (rate - bin.rate);
  bin.sum += share * (last_sum_ - bin.sum);
  bin.loss += share * (loss - bin.loss);
  const double log_loss = std::log(loss);
  if (last_log_ != kNoLog && !jumps) {
    bin.differences += (log_loss - last_log_) * (log_loss - last_log_);
    ++bin.compared;
  }
  last_log_ = log_loss;
}

LossCurve ScheduleRecord::curve() const {
  LossCurve result;
  result.reserve(bins_.size());
  for (size_t i = 0; i < bins_.size(); ++i) {
    double differences = 0;
    uint64_t compared = 0;
    for (size_t j = i < kPooled ? 0 : i + 1 - kPooled; j <= i; ++j) {
      differences += bins_[j].differences;
      compared += bins_[j].compared;
    }
    const Bin& bin = bins_[i];
    LossCurvePoint point;
    point.step = bin.step;
    point.rate = bin.rate;
    point.sum = bin.sum;
    point.loss = bin.count == 0 ? kUnknown : bin.loss;
    if (compared > 0 && bin.count > 0) {
      // The difference of two independent values has twice the variance of one.
      const double variance = differences / (2 * static_cast<double>(compared));
      point.error = std::sqrt(variance / static_cast<double>(bin.count));
    }
    result.push_back(point);
  }
  return result;
}

}  // namespace tycho::analyzer
