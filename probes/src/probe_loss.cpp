#include "built_in.h"

namespace tycho {
namespace {

/// The probe loss after the step: what training is for, without the noise of batches. Run scope, a
/// float64 number; NaN and infinity are recorded as they are. Cost: one forward pass of each chunk.
class ProbeLossProbe : public Probe {
 public:
  std::string name() const override { return "probe_loss"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("probe_loss", "L_probe", "1", {v1::SCOPE_RUN},
                             "Loss on the fixed probe batch, at the parameters after the update.",
                             "Session::set_probe_loss")};
  }

  Needs needs() const override {
    Needs needs;
    needs.probe_loss = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer& transfer) override {
    if (!step.probe_loss.defined()) return {};
    const size_t slot = transfer.send(step.probe_loss);
    return [slot](const Arrived& arrived, Recorder& recorder) {
      recorder.run("probe_loss", arrived.value(slot), Recorder::kUnknown);
    };
  }
};

}  // namespace

std::unique_ptr<Probe> make_probe_loss_probe() { return std::make_unique<ProbeLossProbe>(); }

}  // namespace tycho
