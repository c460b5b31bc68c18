#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "built_in.h"
#include "left_out.h"

namespace tycho {
namespace {

/// Angle between w and w + u from |w|^2, w.u and |u|^2, without the cancellation of acos near 1:
/// with n = |w| and n' = |w + u|, |u|^2 - (n' - n)^2 = 4 n n' sin^2(angle / 2), where
/// n' - n = (2 w.u + |u|^2) / (n' + n). Zero for u = 0; NaN where a norm is zero.
double angle_between(double weight_square, double weight_update, double update_square) {
  const double before = std::sqrt(weight_square);
  const double difference = 2 * weight_update + update_square;  // n'^2 - n^2
  const double after = std::sqrt(std::max(weight_square + difference, 0.0));
  if (!(before > 0) || !(after > 0)) return Recorder::kUnknown;
  const double radial = difference / (after + before);
  const double sine_square = (update_square - radial * radial) / (4 * before * after);
  return 2 * std::asin(std::sqrt(std::min(std::max(sine_square, 0.0), 1.0)));
}

struct Names {
  const char* name;
  ParameterSum sum;
};
constexpr Names kNames[] = {
    {"weight_norm_sq", kWeightSquare},    {"grad_norm_sq", kGradientSquare},
    {"update_norm_sq", kUpdateSquare},    {"weight_dot_grad", kWeightGradient},
    {"weight_dot_update", kWeightUpdate}, {"grad_dot_update", kGradientUpdate},
};

/// Norms and inner products of weights w (before the update), gradient g (as backward delivered it)
/// and update u, per parameter, with sums per layer and for the run. float64 sums over all
/// elements, whatever the dtype; of complex parameters both parts, and the real part of inner
/// products. In a sum over several parameters one that has no gradient counts as zero. A sum of
/// which one term is not known is not recorded, and an event names that term.
class ScalarsProbe : public Probe {
 public:
  std::string name() const override { return "scalars"; }

  std::vector<v1::StatisticDefinition> statistics() const override {
    const std::vector<v1::Scope> all = {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER};
    const char* source = "docs/session.md";
    return {
        define_statistic("weight_norm_sq", "|w|^2", "1", all,
                         "Squared norm of the weights before the update.", source),
        define_statistic("grad_norm_sq", "|g|^2", "1", all,
                         "Squared norm of the gradient that backward delivered, before clipping "
                         "and weight decay.",
                         source),
        define_statistic("update_norm_sq", "|u|^2", "1", all,
                         "Squared norm of the update, weights after minus weights before.", source),
        define_statistic("weight_dot_grad", "w.g", "1", all,
                         "Inner product of the weights before the update and the gradient.",
                         source),
        define_statistic("weight_dot_update", "w.u", "1", all,
                         "Inner product of the weights before the update and the update.", source),
        define_statistic(
            "grad_dot_update", "g.u", "1", all,
            "Inner product of the gradient and the update: to first order the loss change.",
            source),
        define_statistic("angular_update", "angle(w, w + u)", "rad", all,
                         "Angle between the weights before and after the update, "
                         "2 asin(sqrt((|u|^2 - (n' - n)^2) / (4 n n'))) with n, n' their norms.",
                         "theory T1.3"),
    };
  }

  Needs needs() const override {
    Needs needs;
    needs.parameter_sums = true;
    return needs;
  }

  void setup(const ModelInfo& model) override { model_ = model; }

  Finish observe(const StepView& step, Transfer& transfer) override {
    std::vector<Known> known;
    for (const ParameterObservation& seen : *step.parameters) {
      known.push_back({seen.gradient.defined(), seen.update_known, why_not_gradient(seen)});
    }
    const size_t slot = transfer.send(step.parameter_sums);
    return [this, slot, known](const Arrived& arrived, Recorder& recorder) {
      record(arrived.data(slot), known, recorder);
    };
  }

 private:
  struct Known {
    bool gradient;
    bool update;
    std::string why_not_gradient;
    /// Why a sum over several parameters is not known because of this one; empty: it is.
    std::string lacks(ParameterSum sum) const {
      const bool of_update = sum == kUpdateSquare || sum == kWeightUpdate || sum == kGradientUpdate;
      const bool of_gradient =
          sum == kGradientSquare || sum == kWeightGradient || sum == kGradientUpdate;
      if (of_gradient && !why_not_gradient.empty()) {
        return "its gradient is not observed: " + why_not_gradient;
      }
      // Without a gradient its inner product with the update is zero, whatever that is.
      if (!of_update || update || (sum == kGradientUpdate && !gradient)) return {};
      return "its weights before the step are not known";
    }
    bool has(ParameterSum sum) const {
      switch (sum) {
        case kWeightSquare:
          return true;
        case kGradientSquare:
        case kWeightGradient:
          return gradient;
        case kUpdateSquare:
        case kWeightUpdate:
          return update;
        default:
          return gradient && update;
      }
    }
  };
  struct Total {
    double sum[kParameterSums] = {};
    bool any[kParameterSums] = {};
    bool complete[kParameterSums];
    LeftOut left_out;

    Total() { std::fill(std::begin(complete), std::end(complete), true); }
    bool has(ParameterSum s) const { return any[s] && complete[s]; }
    void lacks(ParameterSum s, const std::string& parameter, const std::string& why) {
      complete[s] = false;
      left_out.add(parameter, why);
    }
  };

  void record(const double* sums, const std::vector<Known>& known, Recorder& recorder) const {
    std::vector<Total> layers(model_.layers.size());
    Total run;
    for (const ParameterInfo& parameter : model_.parameters) {
      const double* row = sums + parameter.id * kParameterSums;
      for (const Names& entry : kNames) {
        const std::string why = known[parameter.id].lacks(entry.sum);
        if (!why.empty()) {
          layers[parameter.layer].lacks(entry.sum, parameter.name, why);
          run.lacks(entry.sum, parameter.name, why);
        }
        if (!known[parameter.id].has(entry.sum)) continue;
        recorder.parameter(entry.name, parameter.id, row[entry.sum], Recorder::kUnknown);
        for (Total* total : {&layers[parameter.layer], &run}) {
          total->sum[entry.sum] += row[entry.sum];
          total->any[entry.sum] = true;
        }
      }
      if (known[parameter.id].update) {
        recorder.parameter(
            "angular_update", parameter.id,
            angle_between(row[kWeightSquare], row[kWeightUpdate], row[kUpdateSquare]),
            Recorder::kUnknown);
      }
    }
    for (const LayerInfo& layer : model_.layers) {
      const Total& total = layers[layer.id];
      for (const Names& entry : kNames) {
        if (total.has(entry.sum)) {
          recorder.layer(entry.name, layer.id, total.sum[entry.sum], Recorder::kUnknown);
        }
      }
      total.left_out.say("scalars", "norms of " + name_of(layer), v1::SCOPE_LAYER, layer.id,
                         recorder);
      if (total.has(kUpdateSquare)) {
        recorder.layer("angular_update", layer.id,
                       angle_between(total.sum[kWeightSquare], total.sum[kWeightUpdate],
                                     total.sum[kUpdateSquare]),
                       Recorder::kUnknown);
      }
    }
    for (const Names& entry : kNames) {
      if (run.has(entry.sum)) recorder.run(entry.name, run.sum[entry.sum], Recorder::kUnknown);
    }
    run.left_out.say("scalars", "norms of the run", v1::SCOPE_RUN, 0, recorder);
    if (run.has(kUpdateSquare)) {
      recorder.run(
          "angular_update",
          angle_between(run.sum[kWeightSquare], run.sum[kWeightUpdate], run.sum[kUpdateSquare]),
          Recorder::kUnknown);
    }
  }

  ModelInfo model_;
};

}  // namespace

std::unique_ptr<Probe> make_scalars_probe() { return std::make_unique<ScalarsProbe>(); }

}  // namespace tycho
