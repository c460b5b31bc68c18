// One allocation of Tycho's fails: training goes on, bit for bit as without Tycho.
//
// TYCHO_FAILED_ALLOCATIONS=2000 fails each of the first 2000 of every phase, 1000:2000 the later
// half; by default a few of them, which are others in every phase.
#include <gtest/gtest.h>
#include <torch/torch.h>
#include <tycho/tycho.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/crash/failing_allocations.h"

namespace allocation_test {

constexpr int kSteps = 2;

struct NetworkImpl : torch::nn::Module {
  NetworkImpl() {
    register_module("hidden", hidden);
    register_module("norm", norm);
    register_module("dropout", dropout);
    register_module("head", head);
  }
  at::Tensor forward(const at::Tensor& x) { return head(dropout(torch::relu(norm(hidden(x))))); }
  torch::nn::Linear hidden{2, 3};
  torch::nn::BatchNorm1d norm{3};
  torch::nn::Dropout dropout{0.3};
  torch::nn::Linear head{3, 2};
};
TORCH_MODULE(Network);

tycho::SessionOptions everything(const std::string& directory) {
  return tycho::SessionOptions(directory).preset(tycho::Preset::full).overhead_budget(std::nullopt);
}

/// What two steps leave behind; observed where there is a directory. `given`: the losses; else they
/// are made from the steps.
/// `listens`: there is a listener to findings.
std::vector<at::Tensor> train(const std::optional<std::string>& directory, bool given,
                              bool listens = false) {
  torch::manual_seed(5);
  Network model;
  // LibTorch keeps the names that it makes here; where memory runs out, making them ends the
  // process.
  for (const auto& module : model->modules()) (void)module->name();
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.02));
  const auto x = torch::randn({6, 2});
  const auto y = torch::randint(2, {6}, torch::kInt64);
  const auto loss_now = [&] { return torch::cross_entropy_loss(model->forward(x), y); };
  std::function<at::Tensor()> step_loss = [&] {
    failing::evaluation_begins();
    return loss_now();
  };
  std::function<at::Tensor(int64_t)> batch_loss = [&](int64_t) { return loss_now(); };
  tycho::ProbeLoss probe_loss;
  probe_loss.output = [&](int64_t) {
    failing::evaluation_begins();
    return model->forward(x);
  };
  probe_loss.loss = [&](const at::Tensor& output, int64_t) {
    return torch::cross_entropy_loss(output, y);
  };
  probe_loss.labels = [&](int64_t) { return y; };
  probe_loss.examples = 6;
  std::optional<tycho::Session> session;
  if (directory) {
    std::optional<failing::Inside> apart(failing::kNeverFails);
    auto options = everything(*directory);
    apart.reset();
    const failing::Inside inside(failing::kConstruct);
    session.emplace(*model, optimizer, std::move(options));
    if (listens) session->on_finding([](const tycho::Finding&) {});
    if (given) {
      session->set_probe_loss(std::move(probe_loss));
      session->set_step_loss(std::move(step_loss));
      session->set_batch_loss(std::move(batch_loss));
    }
  }
  std::vector<at::Tensor> left;
  for (int step = 0; step < kSteps; ++step) {
    optimizer.zero_grad();
    const auto loss = loss_now();
    loss.backward();
    optimizer.step();
    left.push_back(loss.detach().clone());
    if (session) {
      const failing::Inside inside(failing::kStep);
      session->step(loss, 6);
    }
  }
  if (session) {
    const failing::Inside inside(failing::kClose);
    session->close();
    session.reset();
  }
  for (const auto& parameter : model->parameters()) {
    left.push_back(parameter.detach().clone());
    left.push_back(parameter.grad().clone());
  }
  for (const auto& buffer : model->buffers()) left.push_back(buffer.clone());
  left.push_back(at::globalContext().defaultGenerator(torch::kCPU).get_state());
  left.push_back(torch::tensor(static_cast<int64_t>(model->is_training())));
  return left;
}

struct Case {
  failing::Phase phase;
  bool given;
  bool listens = false;
};

class FailedAllocations : public ::testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() {
    torch::set_num_threads(1);
    failing::this_is_the_trainer();
  }
  void SetUp() override {
    directory_ = (std::filesystem::temp_directory_path() /
                  ("tycho_failed_allocations_" + std::to_string(getpid())))
                     .string();
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::vector<at::Tensor> observed() {
    std::filesystem::remove_all(directory_);
    return train(directory_, GetParam().given, GetParam().listens);
  }
  std::string directory_;
};

const char* name_of(failing::Phase phase) {
  constexpr const char* names[] = {"construct", "step", "evaluate", "close", "hooks", "writer"};
  return names[phase];
}

TEST_P(FailedAllocations, LeaveTheRunAsItIsWithoutTycho) {
  const failing::Phase phase = GetParam().phase;
  const auto bare = train(std::nullopt, true);
  (void)observed();  // what is made once in a process is made now, and not counted
  failing::arm(phase, -1);
  const auto whole = observed();
  failing::disarm();
  const int64_t all = failing::count(phase);
  ASSERT_GT(all, 10) << name_of(phase);
  for (size_t i = 0; i < bare.size(); ++i) ASSERT_TRUE(torch::equal(bare[i], whole[i])) << i;

  const char* wanted = std::getenv("TYCHO_FAILED_ALLOCATIONS");
  const char* colon = wanted == nullptr ? nullptr : std::strchr(wanted, ':');
  const int64_t from = colon == nullptr ? 0 : std::atoll(wanted);
  const int64_t to = wanted == nullptr ? 0 : std::atoll(colon == nullptr ? wanted : colon + 1);
  std::vector<int64_t> numbers;
  for (int64_t i = from; i < std::min(to, all); ++i) numbers.push_back(i);
  // Dense at the beginning, thin towards the end. Two runs do not allocate alike to the last one:
  // threads and hash tables.
  constexpr int kFew = 16;
  const double last = 0.8 * static_cast<double>(all);
  double at = 0;
  for (int i = 0; wanted == nullptr && i < kFew; ++i) {
    numbers.push_back(static_cast<int64_t>(at));
    at = std::max(at + 1 + static_cast<double>(phase) / 2, at * std::pow(last, 1.0 / kFew));
    if (at >= last) break;
  }
  int64_t reached = 0;
  for (const int64_t number : numbers) {
    if (wanted != nullptr && number % 100 == 0) {
      std::fprintf(stderr, "%s %lld\n", name_of(phase), static_cast<long long>(number));
    }
    failing::arm(phase, number);
    std::vector<at::Tensor> left;
    EXPECT_NO_THROW(left = observed()) << name_of(phase) << " " << number;
    reached += failing::disarm();
    ASSERT_EQ(left.size(), bare.size());
    for (size_t i = 0; i < bare.size(); ++i) {
      ASSERT_TRUE(torch::equal(bare[i], left[i])) << name_of(phase) << " " << number << ": " << i;
    }
  }
  // What threads and hash tables allocate differs from run to run.
  EXPECT_GE(reached, static_cast<int64_t>(numbers.size()) * 3 / 4);
  failing::arm(phase, -1);
  (void)observed();
  failing::disarm();
  EXPECT_GT(failing::count(failing::kHooks), 10) << "a later session of this thread observes";
  std::printf("%s: %lld allocations, %lld of them failed\n", name_of(phase),
              static_cast<long long>(all), static_cast<long long>(reached));
}

INSTANTIATE_TEST_SUITE_P(
    Phases, FailedAllocations,
    ::testing::Values(Case{failing::kConstruct, true}, Case{failing::kStep, true},
                      Case{failing::kEvaluate, true}, Case{failing::kClose, true},
                      Case{failing::kHooks, true}, Case{failing::kWriter, true},
                      Case{failing::kStep, false}, Case{failing::kHooks, false},
                      Case{failing::kStep, true, true}, Case{failing::kClose, true, true},
                      Case{failing::kWriter, true, true}),
    [](const auto& info) {
      return std::string(name_of(info.param.phase)) + (info.param.given ? "" : "_tape") +
             (info.param.listens ? "_listening" : "");
    });

}  // namespace allocation_test
