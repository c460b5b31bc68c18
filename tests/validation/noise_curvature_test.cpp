// Linear and softmax regression under SGD, whose per-example gradients and Gauss-Newton traces are
// exact.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <random>

#include "calibration/calibration.h"
#include "calibration/closed_form.h"
#include "findings.h"
#include "simulated_run.h"

namespace tycho::analyzer {
namespace {

constexpr int kDimension = 20;
constexpr int kBatch = 32;
constexpr int kProbe = 256;

std::string told(const Finding& f) {
  return verdict(f) + " " + std::to_string(f.measured) + " [" + std::to_string(f.ci_low) + ", " +
         std::to_string(f.ci_high) + "] " + f.gate + " / " + f.advice;
}

/// One example's gradient for the trace of the covariance, and its part of H_GN, the loss and the
/// entropy of its prediction.
struct Example {
  Eigen::VectorXd gradient;
  double gauss_newton_trace = 0;
  double loss = 0;
  double entropy = 0;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual Example draw() = 0;  // at the parameters
  virtual bool is_classification() const = 0;
  Eigen::VectorXd parameters;
  std::mt19937 generator{7};
  std::normal_distribution<double> normal;
};

/// y = w.x + noise(x); loss half the square.
class LinearRegression : public Task {
 public:
  explicit LinearRegression(std::function<double(double)> noise, double spread = 0)
      : noise_(std::move(noise)), spread_(spread) {
    parameters = Eigen::VectorXd::Constant(kDimension, 0.3);
  }
  bool is_classification() const override { return false; }
  Example draw() override {
    Eigen::VectorXd x(kDimension);
    const double scale = std::exp(spread_ * normal(generator));
    for (int i = 0; i < kDimension; ++i) x[i] = scale * normal(generator);
    const double error = parameters.dot(x) - noise_(x.norm()) * normal(generator);
    Example example;
    example.gradient = error * x;
    example.gauss_newton_trace = x.squaredNorm();
    example.loss = error * error / 2;
    return example;
  }

 private:
  std::function<double(double)> noise_;
  double spread_;
};

/// Labels drawn from softmax(W x), with W the `truth`, from parameters `start` times it.
class SoftmaxRegression : public Task {
 public:
  SoftmaxRegression(double start, double sharpness) : start_(start) {
    truth_.resize(kClasses, kDimension);
    for (int i = 0; i < truth_.size(); ++i) truth_.data()[i] = sharpness * normal(generator);
    const Eigen::MatrixXd begin = start_ * truth_;
    parameters = Eigen::Map<const Eigen::VectorXd>(begin.data(), begin.size());
  }
  bool is_classification() const override { return true; }
  Example draw() override {
    Eigen::VectorXd x(kDimension);
    for (int i = 0; i < kDimension; ++i) x[i] = normal(generator);
    const Eigen::VectorXd label_probability = softmax(truth_ * x);
    std::discrete_distribution<int> draw_label(label_probability.data(),
                                               label_probability.data() + kClasses);
    const int label = draw_label(generator);
    const Eigen::Map<const Eigen::MatrixXd> w(parameters.data(), kClasses, kDimension);
    const Eigen::VectorXd p = softmax(w * x);
    Eigen::VectorXd error = p;
    error[label] -= 1;
    const Eigen::MatrixXd gradient = error * x.transpose();
    Example example;
    example.gradient = Eigen::Map<const Eigen::VectorXd>(gradient.data(), gradient.size());
    example.gauss_newton_trace = (1 - p.squaredNorm()) * x.squaredNorm();
    example.loss = -std::log(p[label]);
    example.entropy = -(p.array() * p.array().log()).sum();
    return example;
  }

 private:
  static constexpr int kClasses = 5;
  static Eigen::VectorXd softmax(const Eigen::VectorXd& z) {
    const Eigen::ArrayXd e = (z.array() - z.maxCoeff()).exp();
    return (e / e.sum()).matrix();
  }
  double start_;
  Eigen::MatrixXd truth_;
};

struct Options {
  double rate = 0.005;
  int steps = 400;
  bool known_loss = true;
  int noise_every = 1;
  int curvature_every = 4;
};

Finding train(Task* task, const Options& options = {}) {
  Engine engine;
  SimulatedRun run(engine);
  run.add_parameter(run.add_layer("0"), "weight", {1, kDimension});
  for (const char* name : {"grad_noise_trace", "gauss_newton_trace", "predicted_noise_trace",
                           "prediction_calibration"}) {
    run.statistic(name);
  }
  run.open();
  for (int step = 0; step < options.steps; ++step) {
    Eigen::VectorXd mean = Eigen::VectorXd::Zero(task->parameters.size());
    double squares = 0;
    for (int i = 0; i < kBatch; ++i) {
      const Example example = task->draw();
      mean += example.gradient / kBatch;
      squares += example.gradient.squaredNorm() / kBatch;
    }
    task->parameters -= options.rate * mean;
    run.step(step);
    if (step % options.noise_every == 0) {
      run.put("grad_noise_trace", kBatch / (kBatch - 1.0) * (squares - mean.squaredNorm()));
    }
    if (step % options.curvature_every != 0) continue;
    double trace = 0;
    double loss = 0;
    double entropy = 0;
    for (int i = 0; i < kProbe; ++i) {
      const Example example = task->draw();
      trace += example.gauss_newton_trace / kProbe;
      loss += example.loss / kProbe;
      entropy += example.entropy / kProbe;
    }
    run.put("gauss_newton_trace", trace);
    if (!options.known_loss) continue;
    run.put("predicted_noise_trace", task->is_classification() ? trace : 2 * loss * trace);
    if (task->is_classification()) run.put("prediction_calibration", loss / entropy);
  }
  run.finish();
  return find(engine.findings(), "noise_curvature", "run");
}

TEST(NoiseCurvatureTest, LinearRegressionHasIt) {
  LinearRegression task([](double) { return 1.0; });
  const Finding finding = train(&task);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NEAR(finding.measured, 1, 0.1);
  // Measured at steps of their own.
  LinearRegression again([](double) { return 1.0; });
  Options options;
  options.noise_every = 7;
  options.steps = 800;
  EXPECT_EQ(verdict(train(&again, options)), "HOLDS");
}

TEST(NoiseCurvatureTest, ACalibratedModelOfClassesHasIt) {
  SoftmaxRegression task(1, 0.5);
  const Finding finding = train(&task);
  EXPECT_EQ(verdict(finding), "HOLDS") << told(finding);
  EXPECT_NEAR(finding.measured, 1, 0.1);
}

TEST(NoiseCurvatureTest, ErrorsThatGrowWithTheInputViolate) {
  LinearRegression task([](double norm) { return 0.02 * norm * norm; }, 0.5);
  const Finding finding = train(&task, {1e-4});
  EXPECT_EQ(verdict(finding), "VIOLATED") << told(finding);
  EXPECT_GT(finding.measured, 2);
  // And the same inputs with noise of one size do not.
  LinearRegression even([](double) { return 1.0; }, 0.5);
  even.parameters.setZero();
  EXPECT_EQ(verdict(train(&even, {1e-4})), "HOLDS");
}

TEST(NoiseCurvatureTest, StaysSilentWithoutItsGate) {
  // Certain of what is drawn, and uncertain of what is certain.
  SoftmaxRegression overconfident(4, 0.5);
  Finding finding = train(&overconfident, {1e-5});
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  EXPECT_NE(finding.gate.find("not calibrated"), std::string::npos);
  SoftmaxRegression timid(0.1, 2);
  finding = train(&timid, {1e-5});
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  LinearRegression task([](double) { return 1.0; });
  Options unknown;
  unknown.known_loss = false;
  finding = train(&task, unknown);
  EXPECT_EQ(verdict(finding), "NOT_APPLICABLE") << told(finding);
  EXPECT_NE(finding.gate.find("not recognised as"), std::string::npos);
  Options few;
  few.steps = 20;
  EXPECT_EQ(verdict(train(&task, few)), "NOT_YET");
}

const CalibrationCases kCases({
    {"noise_curvature", "linear regression, noise of one size", Expected::kHolds,
     [](uint32_t seed) {
       LinearRegression task([](double) { return 1.0; });
       task.generator.seed(seed);
       return train(&task);
     }},
    {"noise_curvature", "softmax regression that generates its labels", Expected::kHolds,
     [](uint32_t seed) {
       SoftmaxRegression task(1, 0.5);
       task.generator.seed(seed);
       return train(&task);
     }},
    {"noise_curvature", "linear regression, noise that grows with the input", Expected::kViolated,
     [](uint32_t seed) {
       LinearRegression task([](double norm) { return 0.02 * norm * norm; }, 0.5);
       task.generator.seed(seed);
       return train(&task, {1e-4});
     },
     0.6},
    {"noise_curvature", "softmax regression four times too certain", Expected::kSilent,
     [](uint32_t seed) {
       SoftmaxRegression task(4, 0.5);
       task.generator.seed(seed);
       return train(&task, {1e-5});
     }},
});

/// At fixed parameters, K = I: tr Sigma = d (|delta|^2 + s2) + |delta|^2, 2 L tr K = d (|delta|^2 +
/// s2).
ClosedForm form(const std::string& setting, double deviation, double delta_sq) {
  const double noise = deviation * deviation;
  return {"noise_curvature",
          "tr Sigma/(2 L tr K), linear regression, d = 20, x ~ N(0, I), " + setting,
          "1 + |delta|^2/(d (|delta|^2 + s^2))",
          1 + delta_sq / (kDimension * (delta_sq + noise)),
          [deviation](uint32_t seed) {
            LinearRegression task([deviation](double) { return deviation; });
            task.generator.seed(seed);
            Options options;
            options.rate = 0;
            options.steps = 2000;
            return train(&task, options);
          },
          0.05};
}

const ClosedForms kForms({
    form("without noise", 0, 1.8),
    form("|delta|^2 1.8, noise of variance 1", 1, 1.8),
});

}  // namespace
}  // namespace tycho::analyzer
