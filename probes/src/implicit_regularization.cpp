#include <ATen/ATen.h>

#include <cmath>

#include "built_in.h"
#include "curvature_support.h"
#include "not_observed.h"

namespace tycho {
namespace {

// Of the update: how far it may be from -eta g, which rounding of the parameters alone makes.
constexpr double kSameDirection = 1e-2;
constexpr const char* kTermsNotObserved = "implicit_regularization_not_observed";

/// One step of gradient descent against the modified gradient flow (theory T2.15): a step theta' =
/// theta - eta g follows the flow of L + eta/4 |grad L|^2 to third order in eta (Barrett & Dherin
/// 2021), along which L falls by the integral of |g|^2 + eta/2 g'Hg. By the trapezoidal rule, whose
/// error is of third order too,
///   L(theta') - L(theta) + eta/2 (|g|^2 + |g'|^2) = -eta^2/4 (g'Hg + the same at theta').
/// The left side would be 0 for plain gradient flow. On the step's own batch where
/// Session::set_step_loss gave it, else on the probe batch; recorded for plain SGD where the update
/// is -eta times that gradient. Four forward passes, two gradients and two products.
class ImplicitRegularizationProbe : public Probe {
 public:
  std::string name() const override { return "implicit_regularization"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> run = {v1::SCOPE_RUN};
    const char* source = "Barrett & Dherin 2021, arXiv 2009.11162; theory T2.15";
    return {
        define_statistic("modified_flow_excess", "dL + eta <|g|^2>", "1", run,
                         "Loss change of the step minus that of gradient flow, -eta (|g|^2 + "
                         "|g'|^2)/2 with the gradients before and after.",
                         source),
        define_statistic("modified_flow_predicted", "-eta^2/2 <g'Hg>", "1", run,
                         "The same, as predicted from the regularizer eta/4 |grad L|^2: "
                         "-eta^2/4 (g'Hg before + g'Hg after).",
                         source),
        define_statistic("modified_flow_first", "eta <|g|^2>", "1", run,
                         "eta (|g|^2 + |g'|^2)/2, the descent of gradient flow.", source),
        define_statistic("modified_flow_step", "eta g'Hg/|g|^2", "1", run,
                         "The step in units of the curvature along the gradient, mean over both "
                         "ends: the expansion holds where it is small.",
                         source),
        define_statistic("implicit_regularizer", "eta/4 |g|^2", "1", run,
                         "Term that the step size adds to the minimised loss, after the step.",
                         source),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.step_surface = needs.update = true;
    return needs;
  }

  Finish observe(const StepView& step, Transfer&) override {
    const bool on_step = step.step_surface != nullptr;
    LossSurface* surface = on_step ? step.step_surface : step.surface;
    if (surface == nullptr || !step.update.defined()) return nullptr;
    const v1::OptimizerSettings& settings = *step.optimizer;
    const std::string why = why_no_gradient_step(settings);
    if (!why.empty()) return not_observed(kTermsNotObserved, why);
    const double rate = settings.group(0).learning_rate();
    const at::Tensor& update = step.update;

    const End after = look(surface);
    surface->move(-update);
    const End before = look(surface);
    surface->move({});
    const at::Tensor rest = update + before.gradient * rate;
    if (!(inner_product(rest, rest) <=
          kSameDirection * kSameDirection * inner_product(update, update))) {
      return not_observed(
          kTermsNotObserved,
          "the update is not the learning rate times the gradient of this loss (another batch, "
          "clipping, dropout): set a step loss");
    }
    return [=](const Arrived&, Recorder& recorder) {
      const double unknown = Recorder::kUnknown;
      const double squares = before.square + after.square;
      const double curvatures = before.curvature + after.curvature;
      const double first = rate * squares / 2;
      recorder.run("modified_flow_excess", after.value - before.value + first, unknown);
      recorder.run("modified_flow_predicted", -rate * rate / 4 * curvatures, unknown);
      recorder.run("modified_flow_first", first, unknown);
      if (squares > 0) recorder.run("modified_flow_step", rate * curvatures / squares, unknown);
      recorder.run("implicit_regularizer", rate / 4 * after.square, unknown);
    };
  }

 private:
  /// The loss where the surface stands.
  struct End {
    double value = 0;
    double square = 0;     // |g|^2
    double curvature = 0;  // g'Hg
    at::Tensor gradient;
  };

  static End look(LossSurface* surface) {
    End end;
    end.value = surface->value().item<double>();
    end.gradient = surface->gradient(/*products_follow=*/true);
    end.square = inner_product(end.gradient, end.gradient);
    end.curvature = inner_product(end.gradient, surface->hessian_product(end.gradient));
    return end;
  }

  static std::string why_no_gradient_step(const v1::OptimizerSettings& settings) {
    const char* why = "the modified flow is derived for SGD without momentum and decay";
    if (settings.optimizer() != "SGD" || settings.group_size() == 0) return why;
    for (const v1::ParameterGroup& group : settings.group()) {
      if (group.momentum() != 0 || group.weight_decay() != 0) return why;
      if (group.learning_rate() != settings.group(0).learning_rate()) {
        return "the modified flow is derived for one learning rate";
      }
    }
    return "";
  }
};

}  // namespace

std::unique_ptr<Probe> make_implicit_regularization_probe() {
  return std::make_unique<ImplicitRegularizationProbe>();
}

}  // namespace tycho
