#include "src/loss/loss_stretches.h"

#include <algorithm>
#include <cmath>

namespace tycho::analyzer {
namespace {

constexpr double kLargest = 1e150;  // whose square is finite

double bounded(double value) { return std::clamp(value, -kLargest, kLargest); }

// Of two sets of values (Chan, Golub and LeVeque 1979).
void merge(const LossStretch& from, LossStretch* into) {
  if (from.count == 0) return;
  if (into->count == 0) {
    *into = from;
    return;
  }
  const auto a = static_cast<double>(into->count);
  const auto b = static_cast<double>(from.count);
  const double difference = from.mean - into->mean;
  into->mean += difference * (b / (a + b));
  into->square += from.square + difference * difference * (a * b / (a + b));
  into->rate += (from.rate - into->rate) * (b / (a + b));
  into->count += from.count;
  into->end = from.end;
  if (from.lowest.value < into->lowest.value) into->lowest = from.lowest;
  if (from.highest.value > into->highest.value) into->highest = from.highest;
}

}  // namespace

double LossStretch::deviation() const {
  return count < 2 ? 0 : std::sqrt(square / static_cast<double>(count - 1));
}

LossStretch single_loss(const LossPoint& point, double rate) {
  return {point.step, point.step, 1, bounded(point.value), 0, point, point, rate};
}

void LossStretches::add(const LossPoint& point, double rate) {
  merge(single_loss(point, rate), &filling_);
  if (filling_.count < per_stretch_) return;
  closed_.push_back(filling_);
  filling_ = {};
  if (closed_.size() < kMost) return;
  for (size_t i = 0; i < closed_.size() / 2; ++i) {
    LossStretch merged = closed_[2 * i];
    merge(closed_[2 * i + 1], &merged);
    closed_[i] = merged;
  }
  closed_.resize(closed_.size() / 2);
  per_stretch_ *= 2;
}

void LossStretches::rewind(int64_t step) {
  if (filling_.begin >= step) filling_ = {};
  while (!closed_.empty() && closed_.back().begin >= step) closed_.pop_back();
}

std::vector<LossStretch> LossStretches::all() const {
  std::vector<LossStretch> result = closed_;
  if (filling_.count == 0) return result;
  // A part of a stretch is noisier than the others: it joins the last one unless it is half a one.
  if (2 * filling_.count < per_stretch_ && !result.empty()) {
    merge(filling_, &result.back());
  } else {
    result.push_back(filling_);
  }
  return result;
}

}  // namespace tycho::analyzer
