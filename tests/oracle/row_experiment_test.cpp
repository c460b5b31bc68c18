// Whose row is it, where operators do not say: an experiment on the step's tape does, or says that
// examples are coupled. Each parameter is exact against one backward pass per example, or absent
// with a reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "plugin/src/observer.h"
#include "single_examples.h"

namespace tycho {
namespace {

using ::testing::HasSubstr;
using torch::Tensor;
namespace nn = torch::nn;
namespace F = torch::nn::functional;

constexpr int64_t kMemory = int64_t{64} << 20;

/// By parameter, at the last of the steps.
struct Observed {
  std::map<std::string, std::string> absent;  // and why
  std::vector<std::string> exact;
  bool asked = false;
};

// `losses`: one for each of `batch` examples, the mean of which is minimised. A number that is not
// brute force's fails.
Observed observe(nn::Module& module, const std::function<Tensor(int step)>& losses, int64_t batch,
                 int64_t batch_dim = 0, bool taped = true) {
  const ModelInfo info = describe(module);
  const std::vector<Tensor> parameters = parameters_of(info);
  ObserverOptions options;
  options.batch_dim = batch_dim;
  Observer observer(info, options);
  Needs needs;
  needs.gradients = needs.per_example_gradient_norms = true;
  Observed result;
  for (int step = 0; step < 2; ++step) {
    result = Observed();
    const Tensor each = losses(step) / static_cast<double>(batch);
    const auto expected = gradients_by_example(each, parameters, batch);
    module.zero_grad();
    std::optional<tape::TapeRecorder> recorder;
    if (taped) recorder.emplace(parameters, std::unordered_set<const c10::TensorImpl*>(), nullptr);
    observer.install(needs, 1, step == 0 ? 0 : batch, taped ? &*recorder : nullptr);
    const Tensor loss = losses(step).mean();
    loss.backward();
    StepObservation got = observer.uninstall(batch);
    result.asked = observer.asks_for_rows();
    if (taped) {
      const tape::Recording recording = recorder->finish(loss, 0);
      EXPECT_NE(recording.tape, nullptr) << recording.why_not;
      if (recording.tape && result.asked) {
        observer.establish_rows(*recording.tape, parameters, kMemory, &got);
      }
    }
    for (const auto& parameter : info.parameters) {
      const ParameterObservation& seen = got.parameters[parameter.id];
      if (seen.per_example_norm_sq.empty()) {
        EXPECT_NE(seen.why_not_per_example, "") << parameter.name;
        result.absent[parameter.name] = seen.why_not_per_example;
        continue;
      }
      result.exact.push_back(parameter.name);
      for (int64_t i = 0; i < batch; ++i) {
        const Tensor& gradient = expected[static_cast<size_t>(i)][parameter.id];
        const double norm_sq = gradient.defined() ? gradient.square().sum().item<double>() : 0;
        EXPECT_NEAR(seen.per_example_norm_sq[0][i].item<double>(), norm_sq, 1e-9 * (norm_sq + 1e-3))
            << parameter.name << ", example " << i << ", step " << step;
      }
    }
  }
  return result;
}

// Every parameter is exact, and without the tape none is known to be.
void expect_established(nn::Module& module, const std::function<Tensor(int step)>& losses,
                        int64_t batch, int64_t batch_dim = 0) {
  const Observed without = observe(module, losses, batch, batch_dim, false);
  EXPECT_FALSE(without.absent.empty());
  const Observed with = observe(module, losses, batch, batch_dim);
  EXPECT_TRUE(with.asked);
  for (const auto& [name, why] : with.absent) ADD_FAILURE() << name << ": " << why;
}

void expect_absent(nn::Module& module, const std::function<Tensor(int step)>& losses, int64_t batch,
                   const std::string& why) {
  const Observed seen = observe(module, losses, batch);
  for (const std::string& name : seen.exact) ADD_FAILURE() << name << " is recorded";
  for (const auto& [name, said] : seen.absent) EXPECT_THAT(said, HasSubstr(why)) << name;
}

struct Net : nn::Module {
  nn::Linear a{nullptr}, b{nullptr};
  Net(int64_t in, int64_t hidden, int64_t out) {
    a = register_module("a", nn::Linear(in, hidden));
    b = register_module("b", nn::Linear(hidden, out));
    to(torch::kDouble);
  }
};

class RowExperiment : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { torch::manual_seed(100 + GetParam()); }
};

TEST_P(RowExperiment, AnOperatorThatNobodyKnows) {
  Net net(3, 5, 2);
  for (const int64_t batch : {2, 5, 6, 16}) {
    const Tensor x = normal({batch, 6, 3});  // as long as one of the batches
    expect_established(
        net,
        [&](int step) {
          const Tensor h = torch::tanh(net.a(x * (1 + step)));
          return row_losses(net.b(h.unfold(1, 2, 1).sum(-1)));
        },
        batch);
  }
}

TEST_P(RowExperiment, ALoopOverExamplesOfSeveralLengths) {
  Net net(3, 5, 2);
  const Tensor x = normal({4, 7, 3});
  expect_established(
      net,
      [&](int) {
        std::vector<Tensor> losses;
        for (int64_t i = 0; i < 4; ++i) {
          const Tensor h = torch::tanh(net.a(x[i].slice(0, 0, 2 + i)));
          losses.push_back(row_losses(net.b(h.mean(0)).unsqueeze(0))[0]);
        }
        return torch::stack(losses);
      },
      4);
}

TEST_P(RowExperiment, ExamplesThatAlternateAlongSeveralDimensions) {
  Net net(3, 5, 2);
  const Tensor x = normal({4, 3, 3});
  const auto losses = [&](int) {
    const Tensor h = torch::tanh(net.a(x)).reshape({12, 5});
    const Tensor order = torch::tensor({3, 0, 6, 9, 1, 4, 10, 7, 2, 5, 8, 11}, torch::kLong);
    const Tensor y =
        net.b(h.take_along_dim(order.unsqueeze(1).expand({12, 5}), 0).reshape({2, 6, 5}));
    return row_losses(y.reshape({12, 2}).index_select(0, order.argsort()).reshape({4, 3, 2}));
  };
  expect_established(net, losses, 4);
}

TEST_P(RowExperiment, GraphsWhoseNodesAreAddedUp) {
  struct Graphs : nn::Module {
    nn::Linear node{nullptr}, graph{nullptr};
    Graphs() {
      node = register_module("node", nn::Linear(3, 5));
      graph = register_module("graph", nn::Linear(5, 2));
      to(torch::kDouble);
    }
  } net;
  const Tensor x = normal({4, 4, 3});
  const Tensor owner = torch::tensor({0, 1, 1, 1, 2, 2, 3, 3, 3}, torch::kLong);
  const Tensor place = torch::tensor({0, 0, 1, 2, 0, 1, 0, 1, 2}, torch::kLong);
  const Tensor edges = torch::tensor({0, 2, 3, 1, 5, 4, 7, 8, 6}, torch::kLong);
  expect_established(
      net,
      [&](int) {
        const Tensor h = torch::tanh(net.node(x.index({owner, place})));
        const Tensor message = h + h.index_select(0, edges);
        const Tensor sum = torch::zeros({4, 5}, torch::kDouble).index_put({owner}, message, true);
        return row_losses(net.graph(torch::tanh(sum)));
      },
      4);
}

TEST_P(RowExperiment, RoutedExperts) {
  struct Experts : nn::Module {
    nn::Embedding words{nullptr};
    nn::Linear gate{nullptr}, one{nullptr}, two{nullptr}, head{nullptr};
    Experts() {
      words = register_module("words", nn::Embedding(11, 4));
      gate = register_module("gate", nn::Linear(4, 2));
      one = register_module("one", nn::Linear(4, 4));
      two = register_module("two", nn::Linear(4, 4));
      head = register_module("head", nn::Linear(4, 3));
      to(torch::kDouble);
    }
  } net;
  expect_established(
      net,
      [&](int step) {
        torch::manual_seed(step + 10 * GetParam());
        const Tensor tokens = torch::randint(11, {5, 5}, torch::kLong);
        const Tensor h = net.words(tokens).reshape({25, 4});
        const Tensor scores = torch::softmax(net.gate(h), 1);
        const Tensor best = scores.argmax(1);
        Tensor out = torch::zeros_like(h);
        nn::Linear* experts[] = {&net.one, &net.two};
        for (int64_t k = 0; k < 2; ++k) {
          const Tensor rows = best.eq(k).nonzero().reshape({-1});
          const Tensor y = torch::tanh((*experts[k])(h.index_select(0, rows)));
          out = out.index_put({rows}, y * scores.index_select(0, rows).select(1, k).unsqueeze(1));
        }
        return row_losses(net.head(h + out).reshape({5, 5, 3}));
      },
      5);
}

TEST_P(RowExperiment, RegionsThatAreProposed) {
  Net net(4, 6, 3);
  const Tensor maps = normal({3, 8, 4});
  expect_established(
      net,
      [&](int) {
        const Tensor h = torch::tanh(net.a(maps));
        std::vector<Tensor> regions;
        std::vector<int64_t> counts;
        for (int64_t i = 0; i < 3; ++i) {
          const Tensor score = h[i].sum(1);
          const Tensor chosen = std::get<1>(score.topk(2 + i));
          regions.push_back(h[i].index_select(0, chosen));
          counts.push_back(2 + i);
        }
        const auto found = net.b(torch::cat(regions)).split_with_sizes(counts, 0);
        std::vector<Tensor> losses;
        for (const Tensor& each : found) losses.push_back(row_losses(each.unsqueeze(0))[0]);
        return torch::stack(losses);
      },
      3);
}

TEST_P(RowExperiment, ARecurrentLayerBehindWhatNobodyKnows) {
  struct Reader : nn::Module {
    nn::Linear in{nullptr}, head{nullptr};
    nn::GRU gru{nullptr};
    Reader() {
      in = register_module("in", nn::Linear(3, 4));
      gru = register_module("gru", nn::GRU(nn::GRUOptions(4, 5).bidirectional(true)));
      head = register_module("head", nn::Linear(10, 2));
      to(torch::kDouble);
    }
  } net;
  const Tensor x = normal({4, 5, 3});
  expect_established(
      net,
      [&](int) {
        const Tensor h = torch::tanh(net.in(x)).unfold(1, 2, 1).sum(-1).transpose(0, 1);
        return row_losses(net.head(std::get<0>(net.gru(h))).transpose(0, 1));
      },
      4);
}

TEST_P(RowExperiment, DropoutDrawsTheSameMasksAgain) {
  Net net(3, 16, 2);
  const Tensor x = normal({6, 4, 3});
  expect_established(
      net,
      [&](int step) {
        torch::manual_seed(step);
        const Tensor h = torch::dropout(torch::tanh(net.a(x)), 0.5, true);
        return row_losses(net.b(h.unfold(1, 2, 1).sum(-1)));
      },
      6);
}

TEST_P(RowExperiment, ExamplesThatComeTwice) {
  Net net(3, 5, 2);
  const Tensor x = normal({3, 4, 3}).repeat({2, 1, 1});
  expect_established(
      net, [&](int) { return row_losses(net.b(torch::tanh(net.a(x)).unfold(1, 2, 1).sum(-1))); },
      6);
  // Without a second one there is nothing to exchange.
  const Tensor same = normal({1, 4, 3}).repeat({6, 1, 1});
  expect_absent(
      net, [&](int) { return row_losses(net.b(torch::tanh(net.a(same)).unfold(1, 2, 1).sum(-1))); },
      6, "the data of the examples do not differ");
}

TEST_P(RowExperiment, WhatCouplesExamplesIsSaid) {
  Net net(3, 5, 2);
  const Tensor x = normal({6, 3});
  const std::string coupled = "by experiment: the examples are coupled";
  // Contrastive: each against all.
  expect_absent(
      net,
      [&](int) {
        const Tensor z = F::normalize(net.b(torch::tanh(net.a(x))));
        return F::cross_entropy(z.mm(z.t()) / 0.2, torch::arange(6).roll(1),
                                F::CrossEntropyFuncOptions().reduction(torch::kNone));
      },
      6, coupled);
  // Statistics over the batch, by hand.
  expect_absent(
      net,
      [&](int) {
        const Tensor h = net.a(x);
        return row_losses(net.b(torch::tanh((h - h.mean(0)) / h.std(0))));
      },
      6, coupled);
  // A weight by the batch's own largest loss, and a weak one.
  for (const double strength : {1.0, 1e-4}) {
    expect_absent(
        net,
        [&](int) {
          const Tensor losses = row_losses(net.b(torch::tanh(net.a(x))));
          return losses * (1 + strength * losses.logsumexp(0));
        },
        6, coupled);
  }
}

TEST_P(RowExperiment, ExpertsThatChooseAmongTheBatchAreCoupledOnlyIfScoresMix) {
  Net net(3, 5, 2);
  const Tensor x = normal({6, 3});
  // Softmax over the batch, then a choice.
  expect_absent(
      net,
      [&](int) {
        const Tensor h = torch::tanh(net.a(x));
        const auto [score, rows] = torch::softmax(h.sum(1), 0).topk(3);
        const Tensor y = net.b(h.index_select(0, rows)) * score.unsqueeze(1);
        return row_losses(torch::zeros({6, 2}, torch::kDouble).index_put({rows}, y));
      },
      6, "coupled");
}

TEST_P(RowExperiment, SizesThatCoincideEstablishNothing) {
  // As many samples as examples, drawn for both: either might be the examples.
  Net net(3, 5, 2);
  const Tensor x = normal({4, 1, 3});
  const Tensor samples = normal({4, 4, 3});
  const Observed seen = observe(
      net,
      [&](int) {
        const Tensor h = torch::tanh(net.a(x.transpose(0, 1) + samples));
        return row_losses(net.b(h.unfold(2, 2, 1).sum(-1).matmul(torch::ones({4, 5}, at::kDouble)))
                              .transpose(0, 1));
      },
      4);
  EXPECT_EQ(seen.exact.size(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RowExperiment, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace tycho
