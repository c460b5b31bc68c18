#pragma once

#include <cmath>
#include <cstdint>

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

  static NoiseColumns of(const RunContext& context, v1::Scope scope) {
    return {context.column("grad_noise_trace", scope), context.column("grad_signal_sq", scope),
            context.column("noise_scale", scope), context.column("noise_scale_low", scope),
            context.column("noise_scale_high", scope)};
  }
};

/// The noise scale of one layer or the run, as the probe recorded it: what the report says is what
/// its charts and the export show. Traces without recorded limits (`noise_scale_low`) are pooled
/// here by the same code.
class NoiseScaleSeries {
 public:
  /// True where the frame has an estimate of `entity`. O(1) amortised.
  bool observe(const Frame& frame, const NoiseColumns& columns, size_t entity) {
    const ColumnValues trace = frame.column(columns.trace);
    const ColumnValues signal = frame.column(columns.signal);
    if (!std::isfinite(trace[entity]) || !std::isfinite(signal[entity])) return false;
    pool_.add(trace[entity], signal[entity], frame.step());
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
    trace::PooledNoiseScale result = pool_.pooled();
    if (!recorded_) return result;
    result.value = value_;
    result.standard_error = error_;
    result.low = low_;
    result.high = high_;
    return result;
  }

  uint64_t observations() const { return observations_; }

 private:
  trace::NoisePool pool_;
  uint64_t observations_ = 0;
  bool recorded_ = false;
  double value_ = 0;
  double error_ = 0;
  double low_ = 0;
  double high_ = 0;
};

}  // namespace tycho::analyzer
