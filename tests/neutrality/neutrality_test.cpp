// A run with Tycho is, bit for bit, the run without it.
#include <ATen/Context.h>
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/test_device.h"

namespace tycho {
namespace {

/// Convolution, batch norm, in-place activation and dropout: what is easiest to disturb.
struct NetworkImpl : torch::nn::Module {
  NetworkImpl() {
    register_module("convolution", convolution);
    register_module("norm", norm);
    register_module("hidden", hidden);
    register_module("dropout", dropout);
    register_module("head", head);
  }
  at::Tensor forward(at::Tensor x) {
    x = norm(convolution(x));
    torch::relu_(x);
    x = hidden(x.flatten(1));
    torch::relu_(x);
    x = dropout(x);
    return head(x);
  }
  torch::nn::Conv2d convolution{torch::nn::Conv2dOptions(1, 3, 3)};
  torch::nn::BatchNorm2d norm{3};
  torch::nn::Linear hidden{48, 10};
  torch::nn::Dropout dropout{0.3};
  torch::nn::Linear head{10, 3};
};
TORCH_MODULE(Network);

using MakeOptimizer =
    std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)>;

struct Case {
  const char* name;
  MakeOptimizer make;
  int microbatches = 1;
  bool clip = false;
  bool closure = false;
  bool listens = false;
};

/// Everything that a step leaves behind, as bytes.
std::vector<at::Tensor> train(const Case& test, const std::optional<std::string>& directory) {
  torch::manual_seed(11);
  Network model;
  model->to(test_device());
  auto optimizer = test.make(model->parameters());
  std::unique_ptr<Session> session;
  const auto classes = torch::dtype(torch::kInt64).device(test_device());
  at::Tensor data;
  at::Tensor target;
  const auto probe_data = torch::randn({4, 1, 6, 6}, test_device());
  const auto probe_target = torch::randint(3, {4}, classes);
  if (directory) {
    session = std::make_unique<Session>(*model, *optimizer,
                                        SessionOptions(*directory)
                                            .preset(Preset::full)
                                            .overhead_budget(std::nullopt)
                                            .every("hessian_spectrum", 5)
                                            .every("block_sharpness", 5));
    if (test.listens) {
      session->on_finding([&session](const Finding& finding) {
        (void)session->findings();
        (void)session->verdict(finding.law);
        throw std::runtime_error("a listener that fails");
      });
    }
    ProbeLoss probe_loss;
    probe_loss.output = [&](int64_t) { return model->forward(probe_data); };
    probe_loss.loss = [&](const at::Tensor& output, int64_t) {
      return torch::cross_entropy_loss(output, probe_target);
    };
    probe_loss.labels = [&](int64_t) { return probe_target; };
    session->set_probe_loss(std::move(probe_loss));
    session->set_step_loss([&] { return torch::cross_entropy_loss(model->forward(data), target); });
    session->set_batch_loss([&](int64_t index) {
      return torch::cross_entropy_loss(model->forward(probe_data * (1 + index % 3)), probe_target);
    });
  }
  std::vector<at::Tensor> left;
  for (int step = 0; step < 12; ++step) {
    at::Tensor loss;
    data = torch::randn({8, 1, 6, 6}, test_device());
    target = torch::randint(3, {8}, classes);
    if (test.closure) {
      loss = optimizer->step([&] {
        optimizer->zero_grad();
        auto value = torch::cross_entropy_loss(model->forward(data), target);
        value.backward();
        return value;
      });
    } else {
      optimizer->zero_grad();
      for (int part = 0; part < test.microbatches; ++part) {
        const int64_t size = 8 / test.microbatches;
        auto value =
            torch::cross_entropy_loss(model->forward(data.slice(0, part * size, (part + 1) * size)),
                                      target.slice(0, part * size, (part + 1) * size)) /
            test.microbatches;
        value.backward();
        loss = loss.defined() ? loss + value.detach() : value.detach();
      }
      if (test.clip) torch::nn::utils::clip_grad_norm_(model->parameters(), 0.1);
      optimizer->step();
    }
    if (session) session->step(loss, 8);
    if (session && test.listens) (void)session->verdict("edge_of_stability");
    left.push_back(loss.detach().clone());
  }
  if (session) session->close();
  for (const auto& parameter : model->parameters()) {
    left.push_back(parameter.detach().clone());
    left.push_back(parameter.grad().clone());
  }
  for (const auto& buffer : model->buffers()) left.push_back(buffer.clone());
  for (const torch::Device device : {torch::Device(torch::kCPU), test_device()}) {
    left.push_back(at::globalContext().defaultGenerator(device).get_state());
  }
  left.push_back(torch::tensor(static_cast<int64_t>(model->is_training())));
  return left;
}

class NeutralityTest : public ::testing::TestWithParam<Case> {};

TEST_P(NeutralityTest, ParametersBuffersLossesGradientsAndRandomStateAreTheSame) {
  const Case& test = GetParam();
  const auto directory =
      std::filesystem::temp_directory_path() /
      ("tycho_neutrality_" + std::string(test.name) + "_" + std::to_string(getpid()));
  std::filesystem::remove_all(directory);
  const auto bare = train(test, std::nullopt);
  const auto observed = train(test, directory.string());
  std::filesystem::remove_all(directory);
  ASSERT_EQ(bare.size(), observed.size());
  for (size_t i = 0; i < bare.size(); ++i) {
    EXPECT_TRUE(torch::equal(bare[i], observed[i])) << "item " << i << " of " << bare.size();
  }
}

template <typename Optimizer, typename Options>
MakeOptimizer make(Options options) {
  return [options](std::vector<at::Tensor> parameters) {
    return std::make_unique<Optimizer>(std::move(parameters), options);
  };
}

namespace optim = torch::optim;
const Case kCases[] = {
    {"sgd", make<optim::SGD>(optim::SGDOptions(0.05))},
    {"nesterov", make<optim::SGD>(optim::SGDOptions(0.05).momentum(0.9).nesterov(true)), 1, true},
    {"adam", make<optim::Adam>(optim::AdamOptions(0.01)), 2},
    {"listening", make<optim::SGD>(optim::SGDOptions(0.05)), 1, false, false, true},
    {"listening_adam", make<optim::Adam>(optim::AdamOptions(0.01)), 2, true, false, true},
    {"adamw", make<optim::AdamW>(optim::AdamWOptions(0.01).amsgrad(true)), 4, true},
    {"rmsprop", make<optim::RMSprop>(optim::RMSpropOptions(0.01).momentum(0.5).centered(true))},
    {"adagrad", make<optim::Adagrad>(optim::AdagradOptions(0.01))},
    {"lbfgs", make<optim::LBFGS>(optim::LBFGSOptions(0.1).max_iter(3)), 1, false, true},
};
INSTANTIATE_TEST_SUITE_P(Optimizers, NeutralityTest, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace tycho
