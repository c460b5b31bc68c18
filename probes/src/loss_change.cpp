#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"

namespace tycho {
namespace {

/// What one step did to a loss on fixed data, against what gradient and Hessian before the step say
/// it does: L(theta + u) - L(theta) = g.u + 1/2 u'Hu + O(|u|^3) for the update u. On the step's own
/// batch where Session::set_step_loss gave it, else on the probe batch; an event says which. The
/// measured change is a difference of two losses in the model's precision. First and second order
/// split exactly over parameters: g_l.u_l, and 1/2 u_l.(H u)_l with all interactions.
/// Two forward passes, a gradient and a Hessian-vector product.
class LossChangeProbe : public Probe {
 public:
  std::string name() const override { return "loss_change"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    const std::vector<v1::Scope> all = {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    return {
        define_statistic("loss_change", "dL", "1", run,
                         "Loss after the step minus loss before it, on the same data.",
                         "theory T1.6"),
        define_statistic("loss_change_first_order", "g.u", "1", all,
                         "Inner product of gradient before the step and update: the change to "
                         "first order, which layers split exactly.",
                         "theory T1.6"),
        define_statistic("loss_change_second_order", "1/2 u'Hu", "1", all,
                         "Half the curvature along the update before the step; of a layer "
                         "1/2 u_l.(H u)_l.",
                         "theory T1.6"),
        define_statistic("gain_ratio", "dL/g.u", "1", run,
                         "Measured change relative to that of first order: 1 in the linear regime, "
                         "1/2 at the best step along a line, 0 at the edge.",
                         "theory T1.6"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.step_surface = needs.update = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer&) override {
    const bool on_step = step.step_surface != nullptr;
    LossSurface* surface = on_step ? step.step_surface : step.surface;
    if (surface == nullptr || !step.update.defined()) return nullptr;
    const at::Tensor& update = step.update;
    const double after = surface->value().item<double>();
    surface->move(-update);
    const double before = surface->value().item<double>();
    const at::Tensor gradient = surface->gradient(/*products_follow=*/true);
    const at::Tensor image = surface->hessian_product(update);
    surface->move({});
    const double first = inner_product(gradient, update);
    const double second = 0.5 * inner_product(update, image);
    const ByParameter first_by = inner_products(*surface, model_, gradient, update);
    const ByParameter second_by = inner_products(*surface, model_, image * 0.5, update);
    return [=](const Arrived&, Recorder& recorder) {
      recorder.event(
          v1::Event::METHOD,
          on_step ? "loss_change_on_the_batch_of_the_step" : "loss_change_on_the_probe_batch",
          on_step ? "loss changes are those on the batch of each step"
                  : "loss changes are those on the probe batch: no step loss was set",
          v1::SCOPE_RUN, 0);
      recorder.run("loss_change", after - before, Recorder::kUnknown);
      recorder.run("loss_change_first_order", first, Recorder::kUnknown);
      recorder.run("loss_change_second_order", second, Recorder::kUnknown);
      if (first != 0) recorder.run("gain_ratio", (after - before) / first, Recorder::kUnknown);
      first_by.record("loss_change_first_order", recorder);
      second_by.record("loss_change_second_order", recorder);
    };
  }

 private:
  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_loss_change_probe() { return std::make_unique<LossChangeProbe>(); }

}  // namespace tycho
