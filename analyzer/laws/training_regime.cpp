#include "laws/training_regime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/law_support.h"

namespace tycho::analyzer {
namespace {

constexpr double kAgreement = 1e-4;  // of two evaluations of one loss, relative
constexpr double kAgreeingShare = 0.9;
constexpr uint64_t kFewestComparisons = 4;
constexpr double kLargeFactor = 10;  // batch over noise scale
constexpr double kRounding = 1e-6;   // of a float32 loss, relative

}  // namespace

void BatchRegime::begin(const RunContext& context) {
  loss_ = context.column("loss", v1::SCOPE_RUN);
  probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
  batch_size_ = context.column("batch_size", v1::SCOPE_RUN);
  trace_ = context.column("grad_noise_trace", v1::SCOPE_RUN);
  signal_ = context.column("grad_signal_sq", v1::SCOPE_RUN);
}

void BatchRegime::observe(const Frame& frame) {
  const double loss = frame.column(loss_)[0];
  if (last_step_ >= 0 && frame.step() > 0 && frame.step() - 1 == last_step_ &&
      std::isfinite(loss) && std::isfinite(last_probe_loss_)) {
    ++compared_;
    agreed_ += std::fabs(loss - last_probe_loss_) <= kAgreement * std::fabs(loss);
  }
  last_step_ = frame.step();
  last_probe_loss_ = frame.column(probe_loss_)[0];
  const ColumnValues trace = frame.column(trace_);
  if (!trace.present) return;
  noise_.add({trace[0], frame.column(signal_)[0], frame.column(batch_size_)[0]}, frame.step());
}

bool BatchRegime::is_full() const {
  return compared_ >= kFewestComparisons &&
         static_cast<double>(agreed_) >= kAgreeingShare * static_cast<double>(compared_);
}

BatchRegime::Kind BatchRegime::kind() const {
  if (is_full()) return Kind::kFull;
  if (noise_.blocks().observations() < 2 * BlockAverages::kMinBlocks) return Kind::kUnknown;
  // As signal over noise, because the signal may vanish and the noise does not.
  const Estimate inverse = noise_.blocks().ratio({0, 1, 0}, {1, 0, 0});
  const double batch = noise_.blocks().mean({0, 0, 1}).value;
  if (!inverse.bounded()) return Kind::kUnknown;
  if (inverse.low * batch > kLargeFactor) return Kind::kLarge;
  return inverse.high * batch < kLargeFactor ? Kind::kSmall : Kind::kUnknown;
}

std::string BatchRegime::describe() const {
  const Kind is = kind();
  if (is == Kind::kFull) {
    return "full batch: the loss of a step is the probe loss after the step before";
  }
  if (noise_.blocks().observations() < 2 * BlockAverages::kMinBlocks) {
    return "whether the batch is large is not known: the gradient noise was not measured, and the "
           "probe loss is not that of the steps";
  }
  const Estimate inverse = noise_.blocks().ratio({0, 1, 0}, {1, 0, 0});
  const double batch = noise_.blocks().mean({0, 0, 1}).value;
  const std::string scale =
      inverse.value > 0 ? format_number(1 / inverse.value) : "too large to be measured";
  const char* verdict = is == Kind::kLarge   ? "large batch"
                        : is == Kind::kSmall ? "small batch"
                                             : "it cannot be told whether the batch is large";
  return fmt::format("{}: {} examples, noise scale {}", verdict, format_number(batch), scale);
}

void LossWitness::begin(const RunContext& context) {
  loss_ = context.column("loss", v1::SCOPE_RUN);
  probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
  loss_change_ = context.column("loss_change", v1::SCOPE_RUN);
}

void LossWitness::observe(const Frame& frame, bool full_batch) {
  const auto read = [&](ColumnIndex index) {
    const ColumnValues values = frame.column(index);
    if (!values.present) return kUnknown;
    return std::isfinite(values[0]) ? values[0] : Estimate::kInfinity;
  };
  const double probe_loss = read(probe_loss_);
  const double loss = read(loss_);
  const double change = read(loss_change_);
  if (!std::isnan(probe_loss) && !has_probe_loss_) {
    has_probe_loss_ = true;
    last_level_ = kUnknown;  // another loss
  }
  level_ = has_probe_loss_ ? probe_loss : loss;
  rose_ = kUnknown;
  const auto take = [&](double difference, double scale) {
    if (std::isnan(difference)) return;
    const bool rose = difference > kRounding * std::fabs(scale);
    if (!(rose_ == 1)) rose_ = rose ? 1 : 0;
  };
  take(change, std::isfinite(loss) ? loss : 0);
  take(level_ - last_level_, last_level_);
  if (std::isnan(rose_) && full_batch) take(loss - last_loss_, last_loss_);
  if (!std::isnan(level_)) last_level_ = level_;
  if (!std::isnan(loss)) last_loss_ = loss;
}

}  // namespace tycho::analyzer
