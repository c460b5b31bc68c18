// Which example a row belongs to: each parameter is exact against one backward pass per example, or
// absent with a reason. Sizes coincide on purpose.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "plugin/src/observer.h"
#include "single_examples.h"

namespace tycho {
namespace {

using torch::Tensor;
namespace nn = torch::nn;
namespace F = torch::nn::functional;

// Every parameter is observed; none is; exact or absent, one by one.
enum class Expect { kExact, kAbsent, kHonest };

// `losses`: one for each of `batch` examples, at a step. Three steps, compared by brute force.
void expect_sound(nn::Module& module, const std::function<Tensor(int step)>& losses, int64_t batch,
                  Expect expect, const std::vector<std::string>& absent = {},
                  int64_t batch_dim = 0) {
  const ModelInfo info = describe(module);
  const std::vector<Tensor> parameters = parameters_of(info);
  ObserverOptions options;
  options.batch_dim = batch_dim;
  Observer observer(info, options);
  Needs needs;
  needs.gradients = needs.per_example_gradient_norms = true;
  for (int step = 0; step < 3; ++step) {
    const Tensor each = losses(step) / static_cast<double>(batch);
    ASSERT_EQ(each.size(0), batch);
    const auto expected = gradients_by_example(each, parameters, batch);
    module.zero_grad();
    observer.install(needs, 1, step == 0 ? 0 : batch);
    losses(step).mean().backward();
    const StepObservation got = observer.uninstall(batch);
    for (const auto& parameter : info.parameters) {
      SCOPED_TRACE(parameter.name + ", step " + std::to_string(step));
      const ParameterObservation& seen = got.parameters[parameter.id];
      const bool listed = std::find(absent.begin(), absent.end(), parameter.name) != absent.end();
      if (expect == Expect::kAbsent || listed) {
        EXPECT_TRUE(seen.per_example_norm_sq.empty());
        EXPECT_NE(seen.why_not_per_example, "");
        continue;
      }
      if (seen.per_example_norm_sq.empty()) {
        EXPECT_EQ(expect, Expect::kHonest) << seen.why_not_per_example;
        EXPECT_NE(seen.why_not_per_example, "");
        continue;
      }
      ASSERT_EQ(seen.per_example_norm_sq.size(), 1u);
      for (int64_t i = 0; i < batch; ++i) {
        const Tensor& gradient = expected[static_cast<size_t>(i)][parameter.id];
        const double norm_sq = gradient.defined() ? gradient.square().sum().item<double>() : 0;
        EXPECT_NEAR(seen.per_example_norm_sq[0][i].item<double>(), norm_sq,
                    1e-9 * (norm_sq + 1e-3));
      }
    }
  }
}

struct Net : nn::Module {
  nn::Linear a{nullptr}, b{nullptr};
  Net(int64_t in, int64_t hidden, int64_t out) {
    a = register_module("a", nn::Linear(in, hidden));
    b = register_module("b", nn::Linear(hidden, out));
    to(torch::kDouble);
  }
  Tensor forward(const Tensor& x) { return b->forward(torch::tanh(a->forward(x))); }
  Tensor hidden(const Tensor& x) { return torch::tanh(a->forward(x)); }
};

struct Words : nn::Module {
  nn::Embedding e{nullptr};
  nn::Linear l{nullptr};
  Words() {
    e = register_module("e", nn::Embedding(9, 4));
    l = register_module("l", nn::Linear(4, 3));
    to(torch::kDouble);
  }
};

class ExampleRows : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(3); }
};

TEST_F(ExampleRows, BatchesAreDrawnFromADataSetWhileItIsWatched) {
  Net net(3, 5, 2);
  const Tensor data = normal({40, 3});
  const auto draw = [](int step) {
    torch::manual_seed(step);  // The same in both passes of a step.
    return torch::randint(40, {8}, torch::kInt64);
  };
  const auto losses = [&](const Tensor& x) { return row_losses(net.forward(x)); };
  expect_sound(
      net, [&](int step) { return losses(data.index_select(0, draw(step))); }, 8, Expect::kExact);
  expect_sound(
      net, [&](int step) { return losses(data.index({draw(step)})); }, 8, Expect::kExact);
  const Tensor order = torch::randperm(40);
  expect_sound(
      net,
      [&](int step) {
        return losses(data.index_select(0, order.slice(0, 8 * step, 8 * step + 8)));
      },
      8, Expect::kExact);
}

TEST_F(ExampleRows, ReshapedWithAKnownFactor) {
  for (const int64_t length : {4, 3, 8}) {  // as many as the batch, or twice as many
    Net net(3, 5, 2);
    const Tensor x = normal({4, length, 3});
    const auto flat = [&](int) {
      return row_losses(net.forward(x.reshape({-1, 3})).reshape({4, length, 2}));
    };
    expect_sound(net, flat, 4, Expect::kExact);
    const auto inside = [&](int) {
      const Tensor h = net.hidden(x).reshape({4 * length, 5});
      return row_losses(net.b->forward(h).view({4, -1}));
    };
    expect_sound(net, inside, 4, Expect::kExact);
    const auto transposed = [&](int) {
      const Tensor h = net.hidden(x.transpose(0, 1)).reshape({-1, 5});
      return row_losses(net.b->forward(h).reshape({length, 4, 2}).permute({1, 2, 0}));
    };
    expect_sound(net, transposed, 4, Expect::kExact);
  }
}

TEST_F(ExampleRows, SamplesInFront) {
  for (const int64_t samples : {2, 4}) {
    Net net(3, 5, 2);
    const Tensor x = normal({4, 3});
    const Tensor noise = normal({samples, 4, 5});
    const auto apart = [&](int) {
      const Tensor y = net.b->forward(net.hidden(x) + noise);
      return torch::logsumexp(y.square().sum(2), 0);
    };
    expect_sound(net, apart, 4, Expect::kExact);
    const auto flat = [&](int) {
      const Tensor z = (net.hidden(x) + noise).reshape({samples * 4, 5});
      return torch::logsumexp(net.b->forward(z).reshape({samples, 4, 2}).square().sum(2), 0);
    };
    expect_sound(net, flat, 4, Expect::kExact);
    const auto repeated = [&](int) {
      const Tensor y = net.forward(x.repeat({samples, 1})).reshape({samples, 4, 2});
      return torch::logsumexp(y.square().sum(2), 0);
    };
    expect_sound(net, repeated, 4, Expect::kExact);
    const auto interleaved = [&](int) {
      const Tensor y = net.forward(x.repeat_interleave(samples, 0)).reshape({4, samples, 2});
      return torch::logsumexp(y.square().sum(2), 1);
    };
    expect_sound(net, interleaved, 4, Expect::kExact);
    // The input itself has the samples in front: the batch is not where the options say.
    const Tensor views = normal({samples, 4, 3});
    const auto given = [&](int) { return torch::logsumexp(net.forward(views).square().sum(2), 0); };
    expect_sound(net, given, 4, Expect::kAbsent);
    expect_sound(net, given, 4, Expect::kExact, {}, 1);
    const auto averaged = [&](int) { return net.forward(views).square().sum(2).mean(0); };
    expect_sound(net, averaged, 4, Expect::kAbsent);
  }
}

TEST_F(ExampleRows, RowsThatAreMovedInsideTheModel) {
  Net net(3, 5, 2);
  const Tensor x = normal({4, 3});
  const Tensor order = torch::tensor({2, 0, 3, 1}, torch::kLong);
  const Tensor twice = torch::tensor({2, 2, 3, 1}, torch::kLong);
  const auto loss = [&](const std::function<Tensor(const Tensor&)>& move,
                        const std::function<Tensor(const Tensor&)>& back) {
    return [&net, &x, move, back](int) {
      return row_losses(back(net.b->forward(move(net.hidden(x)))));
    };
  };
  expect_sound(net,
               loss([&](const Tensor& h) { return h.index_select(0, order); },
                    [&](const Tensor& y) { return y.index_select(0, order.argsort()); }),
               4, Expect::kExact);
  expect_sound(
      net,
      loss([](const Tensor& h) { return h.flip(0); }, [](const Tensor& y) { return y.flip(0); }), 4,
      Expect::kExact);
  expect_sound(net,
               loss([](const Tensor& h) { return h.roll(1, 0); },
                    [](const Tensor& y) { return y.roll(-1, 0); }),
               4, Expect::kExact);
  const auto shifted = [&](int) {
    const Tensor h = net.hidden(x);
    return row_losses(net.b->forward(h * h.roll(1, 0)));
  };
  expect_sound(net, shifted, 4, Expect::kAbsent);
  const auto neighbours = [&](int) {
    const Tensor y = net.forward(x);
    return row_losses(y - y.index_select(0, twice));
  };
  expect_sound(net, neighbours, 4, Expect::kAbsent);
}

TEST_F(ExampleRows, GatheredTokens) {
  Words net;
  const Tensor x = torch::randint(0, 9, {4, 5}, torch::kLong);
  // Two of each, or 1, 3, 2, 2 of them: eight rows in both cases.
  for (const bool even : {true, false}) {
    Tensor mask = torch::zeros({4, 5}, torch::kBool);
    for (int64_t i = 0; i < 4; ++i) mask[i][i] = true;
    for (int64_t i = 0; i < 4; ++i) mask[even ? i : std::max<int64_t>(i, 1)][4] = true;
    if (!even) mask[1][0] = true;
    const Tensor example = mask.nonzero().select(1, 0);
    const auto by_mask = [&](int) {
      const Tensor h = torch::tanh(net.e->forward(x));
      const Tensor each = row_losses(net.l->forward(h.index({mask})));
      return torch::zeros({4}, torch::kDouble).index_add(0, example, each);
    };
    expect_sound(net, by_mask, 4, Expect::kExact);
    const auto by_flat_index = [&](int) {
      const Tensor where = mask.reshape({-1}).nonzero().squeeze(1);
      const Tensor h = torch::tanh(net.e->forward(x)).reshape({20, 4});
      const Tensor each = row_losses(net.l->forward(h.index_select(0, where)));
      return torch::zeros({4}, torch::kDouble).index_add(0, example, each);
    };
    expect_sound(net, by_flat_index, 4, Expect::kExact);
  }
  // One token each: as many rows as examples.
  const Tensor last = torch::tensor({1, 4, 0, 2}, torch::kLong);
  const auto one = [&](int) {
    const Tensor h = torch::tanh(net.e->forward(x));
    return row_losses(net.l->forward(h.index({torch::arange(4), last})));
  };
  expect_sound(net, one, 4, Expect::kExact);
  // Pooled into graphs by an index: rows of several examples are added up.
  const Tensor pool = torch::tensor({0, 0, 1, 1}, torch::kLong);
  const auto pooled = [&](int) {
    const Tensor h = torch::tanh(net.e->forward(x)).mean(1);
    const Tensor pools = torch::zeros({4, 4}, torch::kDouble).index_add(0, pool, h);
    return row_losses(net.l->forward(pools));
  };
  expect_sound(net, pooled, 4, Expect::kAbsent);
}

TEST_F(ExampleRows, PackedSequences) {
  namespace rnn = torch::nn::utils::rnn;
  Words net;
  const Tensor x = torch::randint(0, 9, {4, 4}, torch::kLong);
  for (const auto& lengths : {std::vector<int64_t>{4, 3, 3, 2}, std::vector<int64_t>{2, 4, 3, 3}}) {
    const auto losses = [&](int) {
      const auto packed = rnn::pack_padded_sequence(net.e->forward(x), torch::tensor(lengths), true,
                                                    /*enforce_sorted=*/false);
      const rnn::PackedSequence after(torch::tanh(net.l->forward(packed.data())),
                                      packed.batch_sizes(), packed.sorted_indices(),
                                      packed.unsorted_indices());
      return row_losses(std::get<0>(rnn::pad_packed_sequence(after, true)));
    };
    expect_sound(net, losses, 4, Expect::kExact);
  }
}

TEST_F(ExampleRows, SeveralViews) {
  Net net(3, 5, 2);
  const Tensor views = normal({8, 3});
  const auto stacked = [&](int) {
    const Tensor z = net.forward(views);
    return row_losses(z.slice(0, 0, 4)) + (z.slice(0, 0, 4) - z.slice(0, 4)).square().sum(1);
  };
  expect_sound(net, stacked, 4, Expect::kAbsent);
  const Tensor first = normal({4, 3});
  const auto inside = [&](int) {
    const Tensor h = net.hidden(first);
    const Tensor z = net.b->forward(torch::cat({h, h.square()}));
    return row_losses(z.slice(0, 0, 4) - z.slice(0, 4));
  };
  expect_sound(net, inside, 4, Expect::kExact);
}

TEST_F(ExampleRows, LossesThatMixExamples) {
  Net net(3, 5, 2);
  const Tensor x = normal({4, 3});
  const auto contrastive = [&](int) {
    const Tensor z = net.forward(x);
    return F::cross_entropy(torch::matmul(z, z.t()), torch::arange(4),
                            F::CrossEntropyFuncOptions().reduction(torch::kNone));
  };
  expect_sound(net, contrastive, 4, Expect::kAbsent);
  const auto centred = [&](int) {
    const Tensor z = net.forward(x);
    return row_losses(z - z.mean(0, true));
  };
  expect_sound(net, centred, 4, Expect::kAbsent);
  const auto softmax = [&](int) { return row_losses(torch::softmax(net.forward(x), 0)); };
  expect_sound(net, softmax, 4, Expect::kAbsent);
  // What is not differentiated may depend on all: statistics, masks, weights of examples.
  const auto weighted = [&](int) {
    const Tensor each = row_losses(net.forward(x));
    return each * (each / each.mean()).detach();
  };
  expect_sound(net, weighted, 4, Expect::kExact);
  const auto logged = [&](int) {
    const Tensor z = net.forward(x);
    (void)torch::matmul(z, z.t()).norm();
    return row_losses(z);
  };
  expect_sound(net, logged, 4, Expect::kExact);
}

TEST_F(ExampleRows, Positions) {
  struct Placed : nn::Module {
    nn::Embedding word{nullptr}, pos{nullptr};
    nn::Linear head{nullptr};
    explicit Placed(int64_t length) {
      word = register_module("word", nn::Embedding(9, 4));
      pos = register_module("pos", nn::Embedding(length, 4));
      head = register_module("head", nn::Linear(4, 3));
      to(torch::kDouble);
    }
  };
  for (const int64_t length : {5, 4, 8}) {
    Placed net(length);
    const Tensor x = torch::randint(0, 9, {4, length}, torch::kLong);
    const auto with = [&](const Tensor& ids, bool expands) {
      return [&net, &x, ids, expands](int) {
        const Tensor words = net.word->forward(x);
        Tensor place = net.pos->forward(ids);
        if (expands) place = place.unsqueeze(0).expand_as(words);
        return row_losses(net.head->forward(torch::tanh(words + place)));
      };
    };
    const Tensor ids = torch::arange(length);
    // Held by the model, as many as examples: nothing tells them from a batch of another input.
    const Expect held = length == 4 ? Expect::kHonest : Expect::kExact;
    expect_sound(net, with(ids, false), 4, held);
    expect_sound(net, with(ids, true), 4, held);
    expect_sound(net, with(ids.unsqueeze(0), false), 4, Expect::kExact);
    const auto made = [&](int) {
      const Tensor place = net.pos->forward(torch::arange(length));
      return row_losses(net.head->forward(torch::tanh(net.word->forward(x) + place)));
    };
    expect_sound(net, made, 4, Expect::kExact);
  }
}

struct Doubled : torch::autograd::Function<Doubled> {
  static Tensor forward(torch::autograd::AutogradContext*, const Tensor& x) {
    return x.flip(0) * 2;
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*,
                                               torch::autograd::tensor_list d) {
    return {d[0].flip(0) * 2};
  }
};

// What joins at a later step is not covered by what was seen before.
TEST_F(ExampleRows, PenaltiesAndCustomFunctionsThatJoinLater) {
  Net net(3, 5, 1);
  const Tensor x = normal({4, 3});
  const ModelInfo info = describe(net);
  const std::vector<Tensor> parameters = parameters_of(info);
  const auto penalty = [&] {
    const Tensor at = x.clone().requires_grad_(true);
    const Tensor y = net.forward(at);
    const Tensor slope = torch::autograd::grad({y.sum()}, {at}, {}, true, true)[0];
    return y.squeeze(1) + 2 * slope.square().sum(1);
  };
  const auto decay = [&] {
    return row_losses(net.forward(x)) + 0.1 * net.a->weight.square().sum();
  };
  const auto custom = [&] { return row_losses(net.b->forward(Doubled::apply(net.hidden(x)))); };
  int which = 0;
  for (const std::function<Tensor()>& other :
       std::vector<std::function<Tensor()>>{penalty, decay, custom}) {
    Observer observer(info, {});
    Needs needs;
    needs.gradients = needs.per_example_gradient_norms = true;
    for (int step = 0; step < 6; ++step) {
      const bool joins = step % 3 == 2;
      net.zero_grad();
      observer.install(needs, 1, 4);
      (joins ? other() : row_losses(net.forward(x))).mean().backward();
      const StepObservation got = observer.uninstall(4);
      EXPECT_EQ(got.parameters[0].per_example_norm_sq.empty(), joins) << which << " " << step;
      EXPECT_EQ(got.parameters[2].per_example_norm_sq.empty(), joins && which != 1)
          << which << " " << step;
    }
    ++which;
  }
}

// A loss that no operator was seen to make may mix what it likes.
TEST_F(ExampleRows, CustomLoss) {
  Net net(3, 5, 2);
  const ModelInfo info = describe(net);
  const Tensor x = normal({4, 3});
  Observer observer(info, {});
  Needs needs;
  needs.per_example_gradient_norms = true;
  for (const bool custom : {true, false}) {
    net.zero_grad();
    observer.install(needs, 1, 4);
    const Tensor each = row_losses(net.forward(x));
    const Tensor loss = custom ? Doubled::apply(each.mean().unsqueeze(0)) : each.mean();
    loss.backward();
    observer.note_loss(loss);
    for (const auto& seen : observer.uninstall(4).parameters) {
      EXPECT_EQ(seen.per_example_norm_sq.empty(), custom) << seen.why_not_per_example;
    }
  }
}

TEST_F(ExampleRows, OneForwardTwoBackwards) {
  Net net(3, 5, 2);
  const ModelInfo info = describe(net);
  const Tensor x = normal({4, 3});
  Observer observer(info, {});
  Needs needs;
  needs.gradients = needs.per_example_gradient_norms = true;
  for (const int64_t said : {4, 4, 8}) {
    net.zero_grad();
    observer.install(needs, 1, said);
    const Tensor y = net.forward(x);
    y.select(1, 0).sin().mean().backward({}, true);
    y.select(1, 1).square().mean().backward();
    for (const auto& seen : observer.uninstall(said).parameters) {
      EXPECT_TRUE(seen.per_example_norm_sq.empty());
      EXPECT_NE(seen.why_not_per_example, "");
    }
  }
}

TEST_F(ExampleRows, OtherLayers) {
  const auto one_layer = [](auto layer, const Tensor& x, Expect expect) {
    struct Holder : nn::Module {
    } holder;
    holder.register_module("l", layer);
    holder.to(torch::kDouble);
    expect_sound(
        holder, [&](int) { return row_losses(layer->forward(x)); }, x.size(0), expect);
  };
  const Tensor words = torch::randint(0, 9, {3, 5}, torch::kLong);
  for (const bool mean : {true, false}) {
    nn::EmbeddingBagOptions options(9, 4);
    if (mean)
      options.mode(torch::kMean);
    else
      options.mode(torch::kSum);
    one_layer(nn::EmbeddingBag(options), words, Expect::kExact);
  }
  one_layer(nn::PReLU(nn::PReLUOptions().num_parameters(4)), normal({3, 4, 5}), Expect::kExact);
  one_layer(nn::PReLU(), normal({3, 4, 5}), Expect::kExact);
  nn::Bilinear bilinear(3, 3, 4);
  struct Holder : nn::Module {
  } holder;
  holder.register_module("l", bilinear);
  holder.to(torch::kDouble);
  const Tensor x = normal({3, 3});
  expect_sound(
      holder, [&](int) { return row_losses(bilinear->forward(x, x.sin())); }, 3, Expect::kExact);
  // Several images of each example, in one batch for the convolution.
  nn::Conv2d conv(nn::Conv2dOptions(2, 3, 2));
  struct Frames : nn::Module {
  } frames;
  frames.register_module("l", conv);
  frames.to(torch::kDouble);
  const Tensor video = normal({3, 4, 2, 5, 5});
  expect_sound(
      frames,
      [&](int) {
        const Tensor y = conv->forward(video.flatten(0, 1));
        return row_losses(torch::relu(y).view({3, 4, 3, 4, 4}).mean(1));
      },
      3, Expect::kExact);
}

// One parameter that cannot be observed takes nothing from the others.
TEST_F(ExampleRows, OneUnknownLayerAmongOthers) {
  struct Recurrent : nn::Module {
    nn::Linear in{nullptr}, out{nullptr};
    nn::LSTM lstm{nullptr};
    Recurrent() {
      in = register_module("in", nn::Linear(3, 4));
      // Its masks between layers are not seen.
      lstm = register_module(
          "lstm", nn::LSTM(nn::LSTMOptions(4, 5).batch_first(true).num_layers(2).dropout(0.3)));
      out = register_module("out", nn::Linear(5, 2));
      to(torch::kDouble);
    }
  } net;
  const Tensor x = normal({4, 4, 3});
  expect_sound(net,
               [&](int step) {
                 torch::manual_seed(step);
                 const Tensor h = std::get<0>(net.lstm->forward(net.in->forward(x)));
                 return row_losses(net.out->forward(h.select(1, -1)));
               },
               4, Expect::kExact,
               {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0",
                "lstm.weight_ih_l1", "lstm.weight_hh_l1", "lstm.bias_ih_l1", "lstm.bias_hh_l1"});
}

}  // namespace
}  // namespace tycho
