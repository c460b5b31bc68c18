// A ReLU network with one hidden layer, trained on noise in float64: rescaling a hidden unit leaves
// the loss unchanged, so its gradient identity and its discrete balance hold to rounding.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

struct Options {
  double offset = 0;  // added to the activation: not homogeneous any more
  double clip = 0;    // largest gradient norm given to the optimizer; 0: none
  double momentum = 0;
  double shrink = 0;        // of the weights, by other code, after each step
  bool scalars = true;      // norms and inner products are recorded too
  bool other_part = false;  // the session said that gradients of examples do not add up
  bool observed = true;
  uint32_t seed = 1;
};

std::vector<Finding> train(const Options& options) {
  constexpr int kInputs = 5;
  constexpr int kHidden = 7;
  constexpr int kOutputs = 3;
  constexpr int kBatch = 8;
  constexpr int kSteps = 200;
  constexpr double kRate = 0.1;
  constexpr double kDecay = 1e-3;
  std::mt19937 generator(options.seed);
  std::normal_distribution<double> normal;
  const auto random = [&](int rows, int columns) {
    Eigen::MatrixXd m(rows, columns);
    for (int i = 0; i < m.size(); ++i) m.data()[i] = 0.5 * normal(generator);
    return m;
  };
  Eigen::MatrixXd in = random(kHidden, kInputs);
  Eigen::MatrixXd out = random(kOutputs, kHidden);
  Eigen::MatrixXd velocity_in = Eigen::MatrixXd::Zero(kHidden, kInputs);
  Eigen::MatrixXd velocity_out = Eigen::MatrixXd::Zero(kOutputs, kHidden);

  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {kHidden, kInputs}, "double");
  run.add_parameter(run.add_layer("2"), "weight", {kOutputs, kHidden}, "double");
  run.statistic("symmetry_residual");
  for (const char* name : {"conservation_error", "weight_norm_sq", "grad_norm_sq", "update_norm_sq",
                           "weight_dot_grad", "weight_dot_update", "grad_dot_update"}) {
    run.statistic(name);
  }
  run.open();
  v1::ModelStructure structure;
  v1::SymmetryGroup* group = structure.add_symmetry_group();
  group->set_kind("rescale");
  group->set_label("0.weight -> 2.weight");
  group->add_parameter(0);
  group->add_parameter(1);
  engine.on_structure(structure, 0);
  if (options.other_part) {
    v1::Event event;
    event.set_kind(v1::Event::NOT_OBSERVED);
    event.set_code("gradient_noise_not_observed");
    event.set_scope(v1::SCOPE_PARAMETER);
    event.set_message("Gradient noise of 0.weight is not observed: they do not add up");
    event.set_count(1);
    engine.on_event(event, 0);
  }
  v1::ParameterGroup settings;
  settings.set_learning_rate(kRate);
  settings.set_weight_decay(kDecay);
  settings.set_momentum(options.momentum);
  run.settings(0, "SGD", settings);

  for (int step = 0; step < kSteps; ++step) {
    const Eigen::MatrixXd x = random(kInputs, kBatch);
    const Eigen::MatrixXd y = random(kOutputs, kBatch);
    const Eigen::MatrixXd h = in * x;
    const Eigen::MatrixXd active = (h.array() > 0).cast<double>();
    const Eigen::MatrixXd a = h.array().max(0) + options.offset;
    const Eigen::MatrixXd error = (out * a - y) / kBatch;
    const Eigen::MatrixXd gradient_out = error * a.transpose();
    const Eigen::MatrixXd gradient_in =
        ((out.transpose() * error).array() * active.array()).matrix() * x.transpose();
    const Eigen::VectorXd left = (in.array() * gradient_in.array()).rowwise().sum();
    const Eigen::VectorXd right = (out.array() * gradient_out.array()).colwise().sum().transpose();
    const double residual = (left - right).norm() / (left.norm() + right.norm());
    const double norm = std::sqrt(gradient_in.squaredNorm() + gradient_out.squaredNorm());
    const double scale = options.clip > 0 ? std::min(1.0, options.clip / norm) : 1;
    const auto balance = [&]() -> Eigen::VectorXd {
      return out.colwise().squaredNorm().transpose() - in.rowwise().squaredNorm();
    };
    const Eigen::VectorXd before = balance();
    velocity_in = options.momentum * velocity_in + scale * gradient_in + kDecay * in;
    velocity_out = options.momentum * velocity_out + scale * gradient_out + kDecay * out;
    const Eigen::MatrixXd in_before = in;
    const Eigen::MatrixXd out_before = out;
    in -= kRate * velocity_in;
    out -= kRate * velocity_out;
    in *= 1 - options.shrink;
    out *= 1 - options.shrink;
    const double keep = (1 - kRate * kDecay) * (1 - kRate * kDecay);
    const Eigen::VectorXd gradients =
        kRate * kRate *
        (gradient_out.colwise().squaredNorm().transpose() - gradient_in.rowwise().squaredNorm());
    // Relative to what the gradients contribute: the balance itself would hide an error.
    const double balance_error = (balance() - keep * before - gradients).norm() / gradients.norm();
    run.step(step);
    if (!options.observed) continue;
    run.put("symmetry_residual", v1::SCOPE_PARAMETER, {residual, residual});
    run.put("conservation_error", v1::SCOPE_PARAMETER, {balance_error, balance_error});
    if (!options.scalars) continue;
    const auto put = [&](const char* name, const Eigen::MatrixXd& of_in, const Eigen::MatrixXd& in2,
                         const Eigen::MatrixXd& of_out, const Eigen::MatrixXd& out2) {
      run.put(name, v1::SCOPE_PARAMETER,
              {of_in.cwiseProduct(in2).sum(), of_out.cwiseProduct(out2).sum()});
    };
    const Eigen::MatrixXd d_in = in - in_before;
    const Eigen::MatrixXd d_out = out - out_before;
    put("weight_norm_sq", in_before, in_before, out_before, out_before);
    put("grad_norm_sq", gradient_in, gradient_in, gradient_out, gradient_out);
    put("update_norm_sq", d_in, d_in, d_out, d_out);
    put("weight_dot_grad", in_before, gradient_in, out_before, gradient_out);
    put("weight_dot_update", in_before, d_in, out_before, d_out);
    put("grad_dot_update", gradient_in, d_in, gradient_out, d_out);
  }
  run.finish();
  return engine.findings();
}

TEST(SymmetryTest, HoldsForReluUnits) {
  const auto findings = train({});
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS");
  const Finding finding = find(findings, "symmetry", "param:2.weight");
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured;
  EXPECT_NE(finding.gate.find("0.weight -> 2.weight"), std::string::npos);
}

TEST(SymmetryTest, ActivationThatIsNotHomogeneousViolates) {
  Options options;
  options.offset = 0.1;
  const auto findings = train(options);
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "VIOLATED");
  EXPECT_EQ(verdict(find(findings, "symmetry", "param:0.weight")), "VIOLATED");
}

// A penalty on weights or gradients adds to a gradient what no layer does; the session sees that
// the gradients of examples do not add up.
TEST(SymmetryTest, APenaltyIsNoWrongWiring) {
  Options options;
  options.offset = 0.1;
  options.other_part = true;
  const auto findings = train(options);
  for (const Finding& finding : findings) {
    if (finding.law != "symmetry") continue;
    EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << finding.scope;
    EXPECT_NE(finding.gate.find("penalty"), std::string::npos) << finding.gate;
  }
}

TEST(SymmetryTest, NothingObservedIsNotMeasured) {
  Options options;
  options.observed = false;
  EXPECT_EQ(verdict(find(train(options), "symmetry", "run")), "NOT_MEASURED");
}

TEST(ConservationTest, HoldsForSgd) {
  const Finding finding = find(train({}), "conservation", "param:0.weight");
  EXPECT_EQ(verdict(finding), "HOLDS") << finding.measured;
}

TEST(ConservationTest, ClippedGradientsLeaveNothingToTest) {
  Options options;
  options.clip = 0.1;
  const auto findings = train(options);
  const Finding clipped = find(findings, "conservation", "param:0.weight");
  EXPECT_EQ(verdict(clipped), "NOT_APPLICABLE");
  EXPECT_NE(clipped.gate.find("clipped"), std::string::npos) << clipped.gate;
  EXPECT_TRUE(std::isnan(clipped.measured));
  EXPECT_EQ(verdict(find(findings, "symmetry", "run")), "HOLDS")
      << "the gradients themselves are as they should be";
}

TEST(ConservationTest, WeightsThatOtherCodeWritesLeaveNothingToTest) {
  Options options;
  options.shrink = 0.01;
  const Finding written = find(train(options), "conservation", "param:0.weight");
  EXPECT_EQ(verdict(written), "NOT_APPLICABLE");
  EXPECT_NE(written.gate.find("other code writes the weights"), std::string::npos) << written.gate;
}

TEST(ConservationTest, StepsAsSetWithoutTheSymmetryViolate) {
  Options options;
  options.offset = 0.1;
  EXPECT_EQ(verdict(find(train(options), "conservation", "param:0.weight")), "VIOLATED");
}

TEST(ConservationTest, WithoutTheStepsItIsNotKnownWhatBrokeIt) {
  Options options;
  options.clip = 0.1;
  options.scalars = false;
  EXPECT_EQ(verdict(find(train(options), "conservation", "param:0.weight")), "UNDERPOWERED");
}

TEST(ConservationTest, MomentumIsNotApplicable) {
  Options options;
  options.momentum = 0.9;
  const Finding finding = find(train(options), "conservation", "run");
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE");
  EXPECT_NE(finding.gate.find("momentum"), std::string::npos);
}

/// Of the hidden layer where it speaks of one.
Finding of_unit(const std::vector<Finding>& findings, const std::string& law) {
  for (const Finding& finding : findings) {
    if (finding.law == law && finding.scope == "param:0.weight") return finding;
  }
  return find(findings, law, "run");
}

CalibrationCase rates(const std::string& law, const std::string& setting, Expected expected,
                      const std::function<void(Options&)>& change) {
  Options options;
  change(options);
  return {law, setting, expected, [law, options](uint32_t seed) {
            Options seeded = options;
            seeded.seed = seed;
            return of_unit(train(seeded), law);
          }};
}

const CalibrationCases kCases({
    rates("symmetry", "ReLU network under SGD, rescaled hidden units", Expected::kHolds,
          [](Options&) {}),
    rates("symmetry", "an activation that is not homogeneous", Expected::kViolated,
          [](Options& o) { o.offset = 0.1; }),
    rates("symmetry", "the same, where a penalty adds to the gradient", Expected::kSilent,
          [](Options& o) {
            o.offset = 0.1;
            o.other_part = true;
          }),
    rates("conservation", "ReLU network under SGD with weight decay", Expected::kHolds,
          [](Options&) {}),
    rates("conservation", "an activation that is not homogeneous", Expected::kViolated,
          [](Options& o) { o.offset = 0.1; }),
    rates("conservation", "clipped gradients", Expected::kSilent, [](Options& o) { o.clip = 0.1; }),
    rates("conservation", "weights that other code writes", Expected::kSilent,
          [](Options& o) { o.shrink = 0.01; }),
    rates("conservation", "momentum 0.9", Expected::kSilent, [](Options& o) { o.momentum = 0.9; }),
});

ClosedForm form(const std::string& law, const std::string& quantity, const std::string& formula) {
  return {law,
          quantity,
          formula,
          0,
          [law](uint32_t seed) {
            Options options;
            options.seed = seed;
            return of_unit(train(options), law);
          },
          1e-10};
}

const ClosedForms kForms({
    form("symmetry", "largest relative residual of the rescale identity, 200 steps in float64",
         "<w_in, G_in> = <w_out, G_out>"),
    form("conservation", "relative error of the balance of a rescaled unit over one step",
         "Q' = (1-eta lambda)^2 Q + eta^2 (|g_out|^2 - |g_in|^2)"),
});

}  // namespace
}  // namespace tycho::analyzer
