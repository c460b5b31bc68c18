#include "built_in.h"

namespace tycho {
namespace {

/// The held-out loss, as the trainer gives it with Session::validation. Run scope, a float64
/// number; NaN and infinity are recorded as they are. The session records it; no step observes it,
/// and it costs one small message.
class ValidationProbe : public Probe {
 public:
  std::string name() const override { return "validation"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    return {define_statistic("validation_loss", "L_val", "1", {v1::SCOPE_RUN},
                             "Loss on held-out data as the trainer gave it, at the parameters "
                             "before the step's update; a value after the last step has the next "
                             "step's number.",
                             "Session::validation")};
  }

  Needs needs() const override { return {}; }

  Finish observe(const StepView&, Transfer&) override { return {}; }
};

}  // namespace

std::unique_ptr<Probe> make_validation_probe() { return std::make_unique<ValidationProbe>(); }

}  // namespace tycho
