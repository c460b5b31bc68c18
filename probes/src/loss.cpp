#include <cmath>

#include "built_in.h"

namespace tycho {
namespace {

/// What the step minimised and with which settings. Run scope; one float64 number each.
/// The learning rate is that of the optimizer's first parameter group. A loss that is not there is
/// not recorded; NaN and infinity are recorded as they are.
class LossProbe : public Probe {
 public:
  std::string name() const override { return "loss"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    return {
        define_statistic("loss", "L", "1", run,
                         "The loss that the step minimised, at the parameters before its update.",
                         "Session::step"),
        define_statistic("batch_size", "B", "examples", run,
                         "Examples of the step, all microbatches together.", "Session::step"),
        define_statistic("learning_rate", "eta", "1", run,
                         "Learning rate of the first parameter group, as the step used it.",
                         "torch::optim::Optimizer"),
        define_statistic("step_seconds", "t", "s", run,
                         "Wall time since the previous call of Session::step, including Tycho's "
                         "part.",
                         "std::chrono::steady_clock"),
        define_statistic("tycho_seconds", "t_Tycho", "s", run,
                         "Part of step_seconds spent in calls of the session and in its hooks.",
                         "std::chrono::steady_clock"),
    };
  }

  Needs needs() const override { return {}; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    constexpr size_t kNoSlot = static_cast<size_t>(-1);
    const size_t loss_slot = step.loss.defined() ? transfer.send(step.loss) : kNoSlot;
    const bool has_rate = step.optimizer != nullptr && step.optimizer->group_size() > 0;
    const double rate = has_rate ? step.optimizer->group(0).learning_rate() : Recorder::kUnknown;
    return [=, loss = step.loss_value, loss_known = step.loss_known, batch = step.batch_size,
            seconds = step.step_seconds,
            tycho_seconds = step.tycho_seconds](const Arrived& arrived, Recorder& recorder) {
      if (loss_known) {
        recorder.run("loss", loss_slot == kNoSlot ? loss : arrived.value(loss_slot),
                     Recorder::kUnknown);
      }
      if (batch > 0) recorder.run("batch_size", static_cast<double>(batch), Recorder::kUnknown);
      if (has_rate) recorder.run("learning_rate", rate, Recorder::kUnknown);
      if (std::isfinite(seconds)) recorder.run("step_seconds", seconds, Recorder::kUnknown);
      if (std::isfinite(seconds)) recorder.run("tycho_seconds", tycho_seconds, Recorder::kUnknown);
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_loss_probe() { return std::make_unique<LossProbe>(); }

}  // namespace tycho
