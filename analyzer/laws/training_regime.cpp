#include "laws/training_regime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "laws/availability.h"
#include "laws/law_support.h"

namespace tycho::analyzer {
namespace {

constexpr double kAgreement = 1e-4;  // of two evaluations of one loss, relative
constexpr double kAgreeingShare = 0.9;
constexpr uint64_t kFewestComparisons = 4;
constexpr double kLargeFactor = 10;   // batch over noise scale
constexpr double kShortStep = 0.005;  // |g.dtheta| of the loss
constexpr double kRounding = 1e-6;    // of a float32 loss, relative

}  // namespace

void BatchRegime::begin(const RunContext& context) {
  loss_ = context.column("loss", v1::SCOPE_RUN);
  probe_loss_ = context.column("probe_loss", v1::SCOPE_RUN);
  batch_size_ = context.column("batch_size", v1::SCOPE_RUN);
  product_ = context.column("grad_dot_update", v1::SCOPE_RUN);
  context_ = &context;
  noise_columns_ = NoiseColumns::of(context, v1::SCOPE_RUN);
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
  const double explained = std::fabs(frame.column(product_)[0]);
  if (std::isfinite(loss - last_probe_loss_) && explained < kShortStep * std::fabs(loss)) {
    ++steps_compared_;
    steps_agreed_ +=
        std::fabs(loss - last_probe_loss_) <= 2 * explained + kRounding * std::fabs(loss);
  }
  if (noise_.observe(frame, noise_columns_, 0))
    batch_.add({frame.column(batch_size_)[0]}, frame.step());
}

bool BatchRegime::is_full() const {
  const auto agrees = [](uint64_t agreed, uint64_t compared) {
    return static_cast<double>(agreed) >= kAgreeingShare * static_cast<double>(compared);
  };
  if (compared_ >= kFewestComparisons) return agrees(agreed_, compared_);
  return steps_compared_ >= 2 * kFewestComparisons && agrees(steps_agreed_, steps_compared_);
}

BatchRegime::Kind BatchRegime::kind() const {
  if (is_full()) return Kind::kFull;
  const trace::PooledNoiseScale scale = noise_.now();
  const double batch = batch_.blocks().mean({1}).value;
  if (std::isnan(scale.low) || !(batch > 0)) return Kind::kUnknown;
  if (scale.high * kLargeFactor < batch) return Kind::kLarge;
  return scale.low * kLargeFactor > batch ? Kind::kSmall : Kind::kUnknown;
}

std::string BatchRegime::describe() const {
  const Kind is = kind();
  if (is == Kind::kFull) {
    return compared_ >= kFewestComparisons
               ? "full batch: the loss of a step is the probe loss after the step before"
               : "full batch: the probe loss after a step differs from the loss of the step "
                 "only by the effect of the step";
  }
  const trace::PooledNoiseScale scale = noise_.now();
  if (std::isnan(scale.low)) {
    return "whether the batch is large is not known: " +
           (noise_.observations() > 0
                ? only_observations(noise_.observations()) + " of the gradient noise"
                : why_not_recorded(*context_, {"grad_noise_trace"})) +
           (context_->recorded("probe_loss") ? "; and the probe loss is not that of the steps"
                                             : "");
  }
  const double batch = batch_.blocks().mean({1}).value;
  const char* verdict = is == Kind::kLarge   ? "large batch"
                        : is == Kind::kSmall ? "small batch"
                                             : "it is not known whether the batch is large";
  return fmt::format("{}: {} examples, noise scale {}", verdict, format_number(batch),
                     !std::isnan(scale.value) ? format_interval(scale.value, scale.low, scale.high)
                                              : "at least " + format_number(scale.low));
}

bool BatchRegime::excuse(Finding& finding, const std::string& why) const {
  const Kind is = kind();
  if (is == Kind::kLarge || is == Kind::kFull) return false;
  if (is == Kind::kUnknown && noise_.observations() > 0) {
    // What was measured stands; only what it means depends on the batch.
    finding.gate = describe();
    finding.advice.clear();
    finding.p_value = kUnknown;
    set_verdict(finding, Verdict::kUnderpowered);
    return true;
  }
  set_not_applicable(finding, is == Kind::kSmall ? describe() + "; " + why : describe());
  if (is == Kind::kUnknown) set_verdict(finding, Verdict::kNotMeasured);
  return true;
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
