// A tape is the loss of a step again: same value, same gradients, same curvature; or it says why it
// is not.
#include "tape/loss_tape.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "tape/tape_proof.h"
#include "tape/tape_recorder.h"

namespace tycho::tape {
namespace {

namespace nn = torch::nn;
using at::Tensor;
using Loss = std::function<Tensor()>;

struct Recorded {
  Recording recording;
  Tensor loss;
  std::vector<Tensor> gradients;
  Tensor generator_before, generator_after;
};

Tensor generator_state() { return at::globalContext().defaultGenerator(at::kCPU).get_state(); }

Recorded record(const std::vector<Tensor>& parameters, const Loss& loss_of,
                TapeRecorder* given = nullptr) {
  Recorded result;
  result.generator_before = generator_state();
  std::unique_ptr<TapeRecorder> own;
  if (given == nullptr) {
    own = std::make_unique<TapeRecorder>(parameters, std::unordered_set<const c10::TensorImpl*>(),
                                         nullptr);
  }
  TapeRecorder& recorder = given != nullptr ? *given : *own;
  result.loss = loss_of();
  result.gradients = torch::autograd::grad({result.loss}, parameters, {}, false, false, true);
  result.generator_after = generator_state();
  const at::NoGradGuard no_grad;
  result.recording = recorder.finish(result.loss, 0);
  return result;
}

/// Value and gradients of the replay against the trainer's, and the curvature along the gradient
/// against the same loss evaluated by the program, which starts where the generator did.
void expect_the_same(const char* name, const std::vector<Tensor>& parameters, const Loss& loss_of) {
  SCOPED_TRACE(name);
  const Recorded recorded = record(parameters, loss_of);
  ASSERT_EQ(recorded.recording.why_not, "");
  const LossTape& tape = *recorded.recording.tape;
  Expected expected{recorded.loss.item<double>(), recorded.gradients};
  EXPECT_EQ(disproof(tape, parameters, expected), "");

  const auto curvature = [&](const Tensor& loss) {
    const auto gradients = torch::autograd::grad({loss}, parameters, {}, true, true, true);
    Tensor along = torch::zeros({}, at::kDouble);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined() || !gradients[i].requires_grad()) continue;
      along = along + (gradients[i] * recorded.gradients[i]).sum().to(at::kDouble);
    }
    const auto products = torch::autograd::grad({along}, parameters, {}, false, false, true);
    double sum = 0;
    for (size_t i = 0; i < products.size(); ++i) {
      if (products[i].defined()) sum += (products[i] * recorded.gradients[i]).sum().item<double>();
    }
    return sum;
  };
  // At other parameters too.
  for (const double moved : {0.0, 0.1}) {
    {
      const at::NoGradGuard no_grad;
      for (const Tensor& parameter : parameters) parameter.mul_(1 + moved);
    }
    at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
    generator.set_state(recorded.generator_before);
    const Tensor theirs = loss_of();
    const double expected_curvature = curvature(theirs);
    const Tensor ours = tape.loss();
    EXPECT_NEAR(ours.item<double>(), theirs.item<double>(),
                1e-12 * std::abs(theirs.item<double>()));
    EXPECT_NEAR(curvature(ours), expected_curvature, 1e-9 * std::abs(expected_curvature));
  }
  if (tape.has_output()) {
    const Tensor output = tape.output();
    EXPECT_NEAR(tape.loss(output).item<double>(), tape.loss().item<double>(), 1e-13);
  }
}

class LossTapeTest : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(3); }
  static Tensor randn(at::IntArrayRef sizes) { return torch::randn(sizes, at::kDouble); }
  template <typename Module>
  static Module wide(Module module) {
    module->to(at::kDouble);
    return module;
  }
};

TEST_F(LossTapeTest, IsTheLossOfOrdinaryNetworks) {
  const auto y = torch::randint(4, {8}, at::kLong);
  {
    auto m =
        wide(nn::Sequential(nn::Linear(5, 7), nn::ReLU(nn::ReLUOptions(true)), nn::Linear(7, 4)));
    const auto x = randn({8, 5});
    expect_the_same("mlp", m->parameters(),
                    [&] { return nn::functional::cross_entropy(m->forward(x), y); });
  }
  {
    auto m = wide(nn::Sequential(nn::Conv2d(nn::Conv2dOptions(2, 3, 3).padding(1)),
                                 nn::BatchNorm2d(3), nn::ELU(nn::ELUOptions().inplace(true)),
                                 nn::AvgPool2d(2), nn::Dropout2d(0.3), nn::Flatten(),
                                 nn::Dropout(0.5), nn::Linear(27, 4)));
    const auto x = randn({8, 2, 6, 6});
    expect_the_same("cnn", m->parameters(),
                    [&] { return torch::nll_loss(torch::log_softmax(m->forward(x), 1), y); });
  }
  {
    nn::Embedding embedding(11, 8);
    nn::TransformerEncoder encoder(nn::TransformerEncoderOptions(
        nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(16).dropout(0.1), 2));
    nn::Linear head(8, 11);
    embedding->to(at::kDouble), encoder->to(at::kDouble), head->to(at::kDouble);
    std::vector<Tensor> parameters = embedding->parameters();
    for (const auto& p : encoder->parameters()) parameters.push_back(p);
    for (const auto& p : head->parameters()) parameters.push_back(p);
    const auto tokens = torch::randint(11, {5, 3}, at::kLong);
    expect_the_same("transformer", parameters, [&] {
      const auto mask = torch::triu(torch::full({5, 5}, -1e9, at::kDouble), 1);
      const auto z = head->forward(encoder->forward(embedding->forward(tokens), mask));
      return nn::functional::cross_entropy(z.reshape({-1, 11}), tokens.reshape({-1}));
    });
  }
  {
    auto lstm = wide(nn::LSTM(nn::LSTMOptions(3, 4).num_layers(2)));
    const auto x = randn({6, 8, 3});
    expect_the_same("lstm", lstm->parameters(),
                    [&] { return std::get<0>(lstm->forward(x))[-1].square().mean(); });
  }
}

TEST_F(LossTapeTest, IsTheLossOfLoopsThatWriteIntoTheirOwnTensors) {
  auto cell = wide(nn::GRUCell(3, 4));
  auto head = wide(nn::Linear(4, 2));
  std::vector<Tensor> parameters = cell->parameters();
  for (const auto& p : head->parameters()) parameters.push_back(p);
  const auto x = randn({5, 6, 3});
  const auto y = randn({5, 6, 2});
  expect_the_same("states put into one tensor", parameters, [&] {
    auto states = torch::zeros({5, 6, 4}, at::kDouble);
    auto h = torch::zeros({6, 4}, at::kDouble);
    for (int64_t t = 0; t < 5; ++t) {
      h = cell->forward(x[t], h);
      states[t].copy_(h);
    }
    return torch::mse_loss(head->forward(states), y);
  });
  expect_the_same("a sum that begins with zero", parameters, [&] {
    auto loss = torch::zeros({}, at::kDouble);
    auto h = torch::zeros({6, 4}, at::kDouble);
    for (int64_t t = 0; t < 5; ++t) {
      h = cell->forward(x[t], h);
      loss += torch::mse_loss(head->forward(h), y[t]) * static_cast<double>(t + 1);
    }
    return loss / 5;
  });
  expect_the_same("indexing", parameters, [&] {
    const auto h = cell->forward(x[0], cell->forward(x[1]));
    const auto rows = torch::tensor({4, 0, 0, 3}, at::kLong);
    auto z = head->forward(h.index({rows}));
    z.index_put_({torch::tensor({1}, at::kLong)}, torch::zeros({2}, at::kDouble));
    return z.masked_select(z > -0.1).square().sum();
  });
}

TEST_F(LossTapeTest, OtherNetworksAreConstants) {
  auto generator = wide(nn::Linear(2, 3));
  auto critic = wide(nn::Sequential(nn::Linear(3, 5), nn::Tanh(), nn::Linear(5, 1)));
  const auto noise = randn({6, 2});
  const auto real = randn({6, 3});
  expect_the_same("critic", critic->parameters(), [&] {
    const auto fake = torch::tanh(generator->forward(noise)) * 2;
    return critic->forward(fake.detach()).mean() - critic->forward(real).mean() +
           critic->forward(fake).square().mean();
  });
}

TEST_F(LossTapeTest, FindsOutputAndClasses) {
  auto m = wide(nn::Linear(3, 4));
  const auto x = randn({5, 3});
  const auto y = torch::randint(4, {5}, at::kLong);
  const auto tape_of = [&](const Loss& loss) {
    return record(m->parameters(), loss).recording.tape;
  };
  const auto plain = tape_of([&] { return torch::cross_entropy_loss(m->forward(x), y); });
  ASSERT_TRUE(plain->has_output());
  EXPECT_TRUE(torch::equal(plain->output(), m->forward(x)));
  EXPECT_TRUE(torch::equal(plain->labels(), y));
  const auto logs =
      tape_of([&] { return torch::nll_loss(torch::log_softmax(m->forward(x), 1), y) * 3; });
  ASSERT_TRUE(logs->has_output());
  EXPECT_TRUE(torch::equal(logs->output(), m->forward(x)));
  // A penalty on the weights does not come from the output.
  const auto penalty = tape_of(
      [&] { return torch::cross_entropy_loss(m->forward(x), y) + m->weight.square().sum(); });
  EXPECT_FALSE(penalty->has_output());
  const auto squared = tape_of([&] { return torch::mse_loss(m->forward(x), randn({5, 4})); });
  EXPECT_TRUE(squared->has_output());
  EXPECT_FALSE(squared->labels().defined());
}

struct Twice : torch::autograd::Function<Twice> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) { return x * 2; }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*,
                                               torch::autograd::tensor_list g) {
    return {g[0] * 2};
  }
};

TEST_F(LossTapeTest, SaysWhatCannotBeCalledAgain) {
  auto m = wide(nn::Linear(3, 1));
  const auto x = randn({5, 3});
  const auto why = [&](const Loss& loss) {
    return record(m->parameters(), loss).recording.why_not;
  };
  EXPECT_NE(why([&] { return Twice::apply(m->forward(x)).mean(); }).find("Twice"),
            std::string::npos);
  // One that does not reach the loss does not matter.
  EXPECT_EQ(why([&] {
              (void)Twice::apply(m->forward(x)).mean();
              return m->forward(x).mean();
            }),
            "");
  EXPECT_NE(why([&] {
              auto z = m->forward(x);
              const auto g =
                  torch::autograd::grad({z.square().sum()}, m->parameters(), {}, true, true);
              return z.mean() + g[0].square().sum();
            }),
            "");
  EXPECT_NE(why([&] {
              auto z = torch::tanh(m->forward(x)) * 1;
              {
                const at::NoGradGuard no_grad;
                z.mul_(0.5);
              }
              return z.mean();
            }).find("written to"),
            std::string::npos);
}

TEST_F(LossTapeTest, AnotherLossIsRefuted) {
  auto m = wide(nn::Linear(3, 1));
  const auto x = randn({5, 3});
  Recorded recorded = record(m->parameters(), [&] { return m->forward(x).square().mean(); });
  const LossTape& tape = *recorded.recording.tape;
  Expected expected{recorded.loss.item<double>(), recorded.gradients};
  ASSERT_EQ(disproof(tape, m->parameters(), expected), "");
  // Two backward passes.
  expected.gradients[0] = expected.gradients[0] * 2;
  EXPECT_NE(disproof(tape, m->parameters(), expected), "");
  expected = {recorded.loss.item<double>() * (1 + 1e-9), recorded.gradients};
  EXPECT_NE(disproof(tape, m->parameters(), expected), "");
}

TEST_F(LossTapeTest, TheBatchMayBeOverwrittenAfterTheStep) {
  auto m = wide(nn::Linear(3, 2));
  auto x = randn({5, 3});
  const auto y = randn({5, 2});
  TapeRecorder recorder(m->parameters(), {}, nullptr);
  const auto recorded = record(
      m->parameters(), [&] { return torch::mse_loss(m->forward(x), y); }, &recorder);
  const double loss = recorded.loss.item<double>();
  x.zero_();
  EXPECT_EQ(recorded.recording.tape->loss().item<double>(), loss);
}

TEST_F(LossTapeTest, AnInputThatIsOverwrittenInTheStepIsCopiedNextTime) {
  auto m = wide(nn::Linear(3, 2));
  auto x = randn({5, 3});
  const auto fresh = randn({5, 3});
  const Loss loss = [&] {
    x.copy_(fresh);
    const auto first = m->forward(x).square().mean();
    const double value = first.item<double>();
    (void)value;
    return first;
  };
  std::unordered_set<const c10::TensorImpl*> written;
  for (int round = 0; round < 2; ++round) {
    TapeRecorder recorder(m->parameters(), written, nullptr);
    const Tensor value = loss();
    x.zero_();
    const at::NoGradGuard no_grad;
    Recording recording = recorder.finish(value, 0);
    if (round == 0) {
      EXPECT_TRUE(recording.may_come);
      EXPECT_EQ(recording.tape, nullptr);
      written = recorder.take_written_later();
    } else {
      ASSERT_EQ(recording.why_not, "");
      EXPECT_EQ(recording.tape->loss().item<double>(), value.item<double>());
    }
  }
}

TEST_F(LossTapeTest, KeepsNoIntermediateAlive) {
  auto m = wide(nn::Sequential(nn::Linear(3, 64), nn::Tanh(), nn::Linear(64, 1)));
  const auto x = randn({5, 3});
  TapeRecorder recorder(m->parameters(), {}, nullptr);
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> hidden(
      torch::empty({}).getIntrusivePtr());
  {
    const Tensor h = m[0]->as<nn::Linear>()->forward(x);
    hidden = h.getIntrusivePtr();
    const Tensor loss = torch::tanh(h).mean();
    loss.backward();
  }
  EXPECT_TRUE(hidden.expired());
}

TEST_F(LossTapeTest, TheLossMayBeGivenAsANumber) {
  auto m = wide(nn::Linear(3, 1));
  const auto x = randn({5, 3});
  TapeRecorder recorder(m->parameters(), {}, nullptr);
  const Tensor loss = m->forward(x).square().mean();
  const double value = loss.item<double>();
  const Tensor logged = (loss * 100).detach();
  const at::NoGradGuard no_grad;
  const Recording recording = recorder.finish({}, value);
  ASSERT_EQ(recording.why_not, "");
  EXPECT_EQ(recording.tape->loss().item<double>(), value);
  EXPECT_NE(logged.item<double>(), value);
}

}  // namespace
}  // namespace tycho::tape
