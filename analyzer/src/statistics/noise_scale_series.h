#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "tycho/analyzer/frame.h"
#include "tycho/trace/noise_pool.h"

namespace tycho::analyzer {

/// The columns of the gradient noise at one scope.
struct NoiseColumns {
  ColumnIndex trace = kNoColumn;
  ColumnIndex signal = kNoColumn;
  ColumnIndex scale = kNoColumn;
  ColumnIndex low = kNoColumn;
  ColumnIndex high = kNoColumn;
  ColumnIndex coverage = kNoColumn;
  ColumnIndex covered_trace = kNoColumn;
  ColumnIndex covered_signal = kNoColumn;
  ColumnIndex batch_size = kNoColumn;  ///< of the run

  static NoiseColumns of(const RunContext& context, v1::Scope scope) {
    return {
        context.column("grad_noise_trace", scope),    context.column("grad_signal_sq", scope),
        context.column("noise_scale", scope),         context.column("noise_scale_low", scope),
        context.column("noise_scale_high", scope),    context.column("noise_coverage", scope),
        context.column("covered_noise_trace", scope), context.column("covered_signal_sq", scope),
        context.column("batch_size", v1::SCOPE_RUN)};
  }
};

/// The noise scale of one layer or the run, as the probe recorded it: what the report says is what
/// its charts and the export show. Traces without recorded limits (`noise_scale_low`) are pooled
/// here by the same code.
///
/// Where the noise of a part c of the parameters is observed only, that of the whole is not known,
/// but bounded: of the rest u the square |g_u|^2 is known, and whether it is all signal or all
/// noise, E|g_u|^2 = |G_u|^2 + tr Sigma_u / B gives
///   tr Sigma_c / (|G_c|^2 + E|g_u|^2) <= tr Sigma / |G|^2 <= (tr Sigma_c + B E|g_u|^2) / |G_c|^2.
/// The limits are then those of the two sides, each pooled like the noise scale itself, and there
/// is no value.
class NoiseScaleSeries {
 public:
  /// What is known where it is not all.
  struct Part {
    double coverage = 0;          ///< share of the gradient's square, at `step`
    int64_t step = -1;            ///< observed last
    trace::PooledNoiseScale own;  ///< of the covered parameters by themselves
  };

  /// True where the frame has an estimate of `entity`, or of a part of it. O(1) amortised.
  bool observe(const Frame& frame, const NoiseColumns& columns, size_t entity) {
    const double trace = frame.column(columns.trace)[entity];
    const double signal = frame.column(columns.signal)[entity];
    if (!std::isfinite(trace) || !std::isfinite(signal))
      return observe_part(frame, columns, entity);
    pool_.add(trace, signal, frame.step());
    if (bounds_) bounds_->add(trace, signal, 0, 1, frame.step());
    partial_ = false;
    ++observations_;
    const ColumnValues low = frame.column(columns.low);
    recorded_ = low.present && entity < low.size && is_measured(low[entity]);
    if (recorded_) {
      const ColumnValues scale = frame.column(columns.scale);
      value_ = scale[entity];
      error_ = scale.standard_error != nullptr ? scale.standard_error[entity] : std::nan("");
      low_ = low[entity];
      high_ = frame.column(columns.high)[entity];
    }
    return true;
  }

  /// Of the frame observed last.
  trace::PooledNoiseScale now() const {
    if (partial_) return bounds_->limits();
    trace::PooledNoiseScale result = pool_.pooled();
    if (!recorded_) return result;
    result.value = value_;
    result.standard_error = error_;
    result.low = low_;
    result.high = high_;
    return result;
  }

  /// Of the frame observed last; nothing where it covers all.
  std::optional<Part> part() const {
    if (!partial_) return std::nullopt;
    return Part{coverage_, last_step_, bounds_->own.pooled()};
  }

  uint64_t observations() const { return observations_; }

 private:
  struct Bounds {
    trace::NoisePool own;
    trace::NoisePool least;
    trace::NoisePool most;

    void add(double trace, double signal, double rest, double batch, int64_t step) {
      own.add(trace, signal, step);
      least.add(trace, signal + rest, step);
      most.add(trace + batch * rest, signal, step);
    }
    trace::PooledNoiseScale limits() const {
      trace::PooledNoiseScale result = least.pooled();
      const trace::PooledNoiseScale upper = most.pooled();
      result.value = result.standard_error = std::nan("");
      result.high = upper.high;
      result.begin = std::min(result.begin, upper.begin);
      result.observations = std::max(result.observations, upper.observations);
      return result;
    }
  };

  bool observe_part(const Frame& frame, const NoiseColumns& columns, size_t entity) {
    const double trace = frame.column(columns.covered_trace)[entity];
    const double signal = frame.column(columns.covered_signal)[entity];
    const double coverage = frame.column(columns.coverage)[entity];
    const double batch = frame.column(columns.batch_size)[0];
    if (!std::isfinite(trace) || !std::isfinite(signal) || !(coverage > 0) || !(batch > 0))
      return false;
    if (!bounds_) bounds_.emplace();
    const double covered_square = signal + trace / batch;
    bounds_->add(trace, signal, std::max(0.0, 1 / coverage - 1) * covered_square, batch,
                 frame.step());
    partial_ = true;
    coverage_ = coverage;
    last_step_ = frame.step();
    ++observations_;
    return true;
  }

  trace::NoisePool pool_;
  std::optional<Bounds> bounds_;
  uint64_t observations_ = 0;
  bool partial_ = false;
  double coverage_ = 0;
  int64_t last_step_ = -1;
  bool recorded_ = false;
  double value_ = 0;
  double error_ = 0;
  double low_ = 0;
  double high_ = 0;
};

}  // namespace tycho::analyzer
