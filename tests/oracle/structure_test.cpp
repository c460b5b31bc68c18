// What is found about the structure of a model against a plain check: transform the parameters of a
// symmetry group, and the loss must not change; the gradient identities must hold to rounding.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "structure_found.h"

namespace tycho {
namespace {

using namespace structure_found;  // NOLINT(google-build-using-namespace): made for this test
using ::testing::Contains;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

const Tensor& targets(int64_t count, int64_t classes) {
  static Tensor kept;
  kept = torch::arange(count).remainder(classes);
  return kept;
}

class StructureTest : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(3); }
};

TEST_F(StructureTest, ReluNetworkRescalesAndTranslates) {
  nn::Sequential model(nn::Linear(5, 7), nn::ReLU(), nn::Linear(7, 6), nn::Dropout(0.0), nn::ReLU(),
                       nn::Linear(6, 4));
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  const Loss loss = [&] { return nn::functional::cross_entropy(model->forward(x), targets(8, 4)); };
  const Found found = trace(*model, loss);
  EXPECT_THAT(found.kinds(), UnorderedElementsAre("rescale", "rescale", "translation"));
  EXPECT_THAT(found.labels("rescale"),
              UnorderedElementsAre("0.weight -> 2.weight", "2.weight -> 5.weight"));
  EXPECT_THAT(found.labels("translation"), UnorderedElementsAre("5.weight"));
  expect_invariant(*model, loss);
  expect_identities(*model, loss);
  expect_identities(*model, loss, 3);
  ASSERT_EQ(found.step.structure->edge_size(), 2);
  EXPECT_EQ(found.step.structure->edge(0).via_size(), 1);
  EXPECT_EQ(found.step.structure->edge(0).via(0), "aten::relu");
  EXPECT_EQ(found.step.structure->fact(0).fan_in(), 5u);
  EXPECT_EQ(found.step.structure->fact(0).fan_out(), 7u);
  EXPECT_EQ(found.step.structure->fact(0).nonlinearity(), "aten::relu");
}

TEST_F(StructureTest, NothingIsClaimedOfWhatHasNoSymmetry) {
  nn::Sequential model(nn::Linear(5, 7), nn::Tanh(), nn::Linear(7, 6), nn::GELU(),
                       nn::Linear(6, 4));
  model->to(torch::kDouble);
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  const Found found = trace(*model, [&] { return model->forward(x).square().mean(); });
  EXPECT_THAT(found.kinds(), IsEmpty());
  EXPECT_EQ(found.step.structure->edge_size(), 2);
}

TEST_F(StructureTest, LinearMapsMix) {
  nn::Sequential model(nn::Linear(5, 7), nn::Linear(7, 6),
                       nn::Linear(nn::LinearOptions(6, 3).bias(false)));
  model->to(torch::kDouble);
  randomise(*model);
  for (const bool sequence : {false, true}) {
    const Tensor x =
        sequence ? torch::randn({4, 3, 5}, torch::kDouble) : torch::randn({8, 5}, torch::kDouble);
    const Loss loss = [&] { return model->forward(x).square().mean(); };
    EXPECT_THAT(trace(*model, loss).kinds(),
                UnorderedElementsAre("matrix_rescale", "matrix_rescale"));
    expect_invariant(*model, loss);
    expect_identities(*model, loss);
  }
}

TEST_F(StructureTest, ConvolutionsNormalisationsAndFlatten) {
  for (const double epsilon : {0.0, 0.1}) {
    nn::Sequential model(
        nn::Conv2d(nn::Conv2dOptions(2, 6, 3).padding(1)),
        nn::BatchNorm2d(nn::BatchNorm2dOptions(6).eps(epsilon)), nn::ReLU(nn::ReLUOptions(true)),
        nn::Conv2d(nn::Conv2dOptions(6, 4, 3).groups(2).bias(false)),
        nn::InstanceNorm2d(nn::InstanceNorm2dOptions(4).eps(epsilon).affine(true)), nn::ReLU(),
        nn::ConvTranspose2d(nn::ConvTranspose2dOptions(4, 3, 2).stride(2)), nn::LeakyReLU(),
        nn::MaxPool2d(2), nn::Flatten(), nn::Linear(48, 9),
        nn::BatchNorm1d(nn::BatchNorm1dOptions(9).eps(epsilon)), nn::Linear(9, 3));
    model->to(torch::kDouble);
    randomise(*model);
    const Tensor x = torch::randn({6, 2, 6, 6}, torch::kDouble);
    const Loss loss = [&] {
      return nn::functional::cross_entropy(model->forward(x), targets(6, 3));
    };
    const Found found = trace(*model, loss);
    EXPECT_THAT(found.labels("scale"), UnorderedElementsAre("0.weight", "3.weight", "10.weight"));
    EXPECT_THAT(found.labels("norm_gain"),
                UnorderedElementsAre("1.weight -> 3.weight", "4.weight -> 6.weight",
                                     "11.weight -> 12.weight"));
    EXPECT_THAT(found.labels("rescale"), UnorderedElementsAre("6.weight -> 10.weight"));
    EXPECT_THAT(found.labels("translation"), UnorderedElementsAre("12.weight"));
    if (epsilon == 0) expect_invariant(*model, loss, 1e-8);
    expect_identities(*model, loss);
    expect_identities(*model, loss, 2);
  }
}

TEST_F(StructureTest, GroupNormAndGroupedTransposedConvolution) {
  nn::Sequential model(nn::Conv1d(nn::Conv1dOptions(2, 6, 3)),
                       nn::GroupNorm(nn::GroupNormOptions(3, 6).eps(0.05)), nn::ReLU(),
                       nn::ConvTranspose1d(nn::ConvTranspose1dOptions(6, 4, 3).groups(2)),
                       nn::ReLU(), nn::Conv1d(nn::Conv1dOptions(4, 2, 1)));
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({5, 2, 9}, torch::kDouble);
  const Loss loss = [&] { return model->forward(x).square().mean(); };
  EXPECT_THAT(trace(*model, loss).kinds(), UnorderedElementsAre("scale", "norm_gain", "rescale"));
  expect_identities(*model, loss);
}

struct ResidualImpl : nn::Module {
  nn::Linear in{nullptr}, up{nullptr}, down{nullptr}, out{nullptr};
  bool second_reader = false;
  ResidualImpl() {
    in = register_module("in", nn::Linear(4, 6));
    up = register_module("up", nn::Linear(6, 8));
    down = register_module("down", nn::Linear(8, 6));
    out = register_module("out", nn::Linear(6, 3));
  }
  Tensor forward(const Tensor& x) {
    Tensor h = in(x);
    const Tensor hidden = torch::relu(up(h));
    h = h + down(hidden);
    Tensor y = out(h);
    if (second_reader) y = y + hidden.exp().sum(1, true);
    return y;
  }
};
TORCH_MODULE(Residual);

TEST_F(StructureTest, ResidualStreamsScaleTogetherAndAnotherReaderBreaksThem) {
  Residual model;
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({8, 4}, torch::kDouble);
  const Loss loss = [&] { return model->forward(x).square().mean(); };
  const Found found = trace(*model, loss);
  EXPECT_THAT(found.labels("rescale"), UnorderedElementsAre("up.weight -> down.weight"));
  EXPECT_THAT(found.labels("matrix_rescale"),
              UnorderedElementsAre("in.weight + down.weight -> up.weight + out.weight"));
  expect_invariant(*model, loss);
  expect_identities(*model, loss);
  model->second_reader = true;
  EXPECT_THAT(trace(*model, loss).labels("rescale"), IsEmpty());
  expect_identities(*model, loss);
}

struct AttentionImpl : nn::Module {
  int heads;
  bool chunked;
  nn::Embedding token{nullptr}, position{nullptr};
  nn::LayerNorm norm{nullptr}, last{nullptr};
  nn::Linear qkv{nullptr}, out{nullptr}, head{nullptr};
  AttentionImpl(int h, bool c, double epsilon) : heads(h), chunked(c) {
    token = register_module("token", nn::Embedding(11, 8));
    position = register_module("position", nn::Embedding(5, 8));
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8}).eps(epsilon)));
    last = register_module("last", nn::LayerNorm(nn::LayerNormOptions({8}).eps(epsilon)));
    qkv = register_module("qkv", nn::Linear(8, 24));
    out = register_module("out", nn::Linear(8, 8));
    head = register_module("head", nn::Linear(nn::LinearOptions(8, 11).bias(false)));
  }
  Tensor forward(const Tensor& tokens) {
    Tensor x = token(tokens) + position(torch::arange(tokens.size(1)));
    const Tensor z = qkv(norm(x));
    Tensor q, k, v;
    const int64_t b = tokens.size(0), t = tokens.size(1);
    if (chunked) {
      const auto parts = z.chunk(3, -1);
      const auto split = [&](const Tensor& s) {
        return s.view({b, t, heads, 8 / heads}).transpose(1, 2);
      };
      q = split(parts[0]);
      k = split(parts[1]);
      v = split(parts[2]);
    } else {
      const Tensor parts = z.view({b, t, 3, heads, 8 / heads}).permute({2, 0, 3, 1, 4});
      q = parts[0];
      k = parts[1];
      v = parts[2];
    }
    const Tensor weights =
        (torch::matmul(q, k.transpose(-2, -1)) / std::sqrt(8.0 / heads)).softmax(-1);
    x = x + out(torch::matmul(weights, v).transpose(1, 2).reshape({b, t, 8}));
    return head(last(x));
  }
};
TORCH_MODULE(Attention);

TEST_F(StructureTest, AttentionByHeads) {
  for (const bool chunked : {false, true}) {
    for (const double epsilon : {0.0, 0.2}) {
      SCOPED_TRACE(chunked);
      Attention model(2, chunked, epsilon);
      model->to(torch::kDouble);
      randomise(*model);
      const Tensor tokens = torch::randint(11, {3, 5}, torch::kLong);
      const Loss loss = [&] {
        return nn::functional::cross_entropy(model->forward(tokens).flatten(0, 1), targets(15, 11));
      };
      const Found found = trace(*model, loss);
      EXPECT_THAT(found.labels("query_key"),
                  UnorderedElementsAre("qkv.weight[0:8] -> qkv.weight[8:16]"));
      EXPECT_THAT(found.labels("value_output"),
                  UnorderedElementsAre("qkv.weight[16:24] -> out.weight"));
      EXPECT_THAT(found.labels("norm_gain"),
                  UnorderedElementsAre("norm.weight -> qkv.weight", "last.weight -> head.weight"));
      EXPECT_THAT(found.labels("joint_scale"),
                  UnorderedElementsAre("token.weight + position.weight + out.weight"));
      EXPECT_THAT(
          found.labels("translation"),
          UnorderedElementsAre("token.weight + position.weight + out.weight", "head.weight"));
      for (const SymmetryGroup& group : found.step.symmetries) {
        if (group.kind == "query_key" || group.kind == "value_output") {
          EXPECT_EQ(group.block, 4);
        }
      }
      if (epsilon == 0) expect_invariant(*model, loss, 1e-8);
      expect_identities(*model, loss);
      expect_identities(*model, loss, 2);
    }
  }
}

struct EncoderImpl : nn::Module {
  nn::TransformerEncoderLayer layer{nullptr};
  nn::Linear head{nullptr};
  EncoderImpl() {
    layer = register_module(
        "layer", nn::TransformerEncoderLayer(
                     nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12).dropout(0.0)));
    head = register_module("head", nn::Linear(8, 4));
  }
  Tensor forward(const Tensor& x) { return head(layer(x)).mean(0); }
};
TORCH_MODULE(Encoder);

TEST_F(StructureTest, LibTorchsTransformerLayer) {
  Encoder model;
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({5, 3, 8}, torch::kDouble);
  const Loss loss = [&] { return nn::functional::cross_entropy(model->forward(x), targets(3, 4)); };
  const Found found = trace(*model, loss);
  EXPECT_THAT(found.labels("query_key").size(), 1u);
  EXPECT_THAT(found.labels("value_output").size(), 1u);
  EXPECT_THAT(found.labels("rescale"),
              UnorderedElementsAre("layer.linear1.weight -> layer.linear2.weight"));
  EXPECT_THAT(found.labels("translation"), Contains("head.weight"));
  expect_identities(*model, loss);
}

// A gain multiplies something else in each channel: what follows may not feel a shift of all
// channels alike, but adding a number to the gain is none.
struct TwoNormsImpl : nn::Module {
  nn::Linear in{nullptr}, head{nullptr};
  nn::LayerNorm first{nullptr}, second{nullptr};
  Tensor gain, offset;
  bool by_hand;
  explicit TwoNormsImpl(bool hand) : by_hand(hand) {
    in = register_module("in", nn::Linear(5, 6));
    first = register_module("first", nn::LayerNorm(nn::LayerNormOptions({6})));
    second = register_module("second", nn::LayerNorm(nn::LayerNormOptions({6})));
    head = register_module("head", nn::Linear(6, 4));
    if (!by_hand) return;
    gain = register_parameter("gain", torch::ones({6}));
    offset = register_parameter("offset", torch::zeros({6}));
  }
  Tensor forward(const Tensor& x) {
    Tensor y = first(in(x));
    if (by_hand) y = torch::tanh(y) * gain + offset;
    return head(second(y));
  }
};
TORCH_MODULE(TwoNorms);

TEST_F(StructureTest, AGainIsNotTranslated) {
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  for (const bool by_hand : {false, true}) {
    TwoNorms model(by_hand);
    model->to(torch::kDouble);
    randomise(*model);
    const Loss loss = [&] {
      return nn::functional::cross_entropy(model->forward(x), targets(8, 4));
    };
    const Found found = trace(*model, loss);
    EXPECT_THAT(
        found.labels("translation"),
        UnorderedElementsAre("in.weight", by_hand ? "offset" : "first.bias", "head.weight"));
    expect_identities(*model, loss);
  }
}

struct TiedImpl : nn::Module {
  nn::Embedding token{nullptr};
  nn::Linear up{nullptr}, down{nullptr};
  bool tied;
  explicit TiedImpl(bool t) : tied(t) {
    token = register_module("token", nn::Embedding(9, 6));
    up = register_module("up", nn::Linear(6, 7));
    down = register_module("down", nn::Linear(7, 6));
  }
  Tensor forward(const Tensor& tokens) {
    const Tensor x = down(torch::relu(up(token(tokens))));
    return tied ? torch::matmul(x, token->weight.t())
                : torch::matmul(x, token->weight.detach().t());
  }
};
TORCH_MODULE(Tied);

TEST_F(StructureTest, TiedEmbeddingsBreakTheTranslationOfTheHead) {
  const Tensor tokens = torch::randint(9, {10}, torch::kLong);
  for (const bool tied : {true, false}) {
    Tied model(tied);
    model->to(torch::kDouble);
    randomise(*model);
    const Loss loss = [&] {
      return nn::functional::cross_entropy(model->forward(tokens), targets(10, 9));
    };
    const Found found = trace(*model, loss);
    EXPECT_THAT(found.labels("translation"), IsEmpty());
    EXPECT_THAT(found.labels("rescale"), UnorderedElementsAre("up.weight -> down.weight"));
    EXPECT_THAT(found.labels("matrix_rescale").size(), 1u);
    expect_identities(*model, loss);
  }
}

struct GatedImpl : nn::Module {
  nn::Linear gate{nullptr}, up{nullptr}, down{nullptr};
  GatedImpl() {
    gate = register_module("gate", nn::Linear(nn::LinearOptions(5, 7).bias(false)));
    up = register_module("up", nn::Linear(nn::LinearOptions(5, 7).bias(false)));
    down = register_module("down", nn::Linear(nn::LinearOptions(7, 3).bias(false)));
  }
  Tensor forward(const Tensor& x) { return down(torch::silu(gate(x)) * up(x)); }
};
TORCH_MODULE(Gated);

TEST_F(StructureTest, GatedUnitsRescaleTheLinearBranch) {
  Gated model;
  model->to(torch::kDouble);
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  const Loss loss = [&] { return model->forward(x).square().mean(); };
  EXPECT_THAT(trace(*model, loss).labels("rescale"),
              UnorderedElementsAre("up.weight -> down.weight"));
  expect_invariant(*model, loss);
  expect_identities(*model, loss);
}

// Reads its input in a way that no operator shows.
struct Hidden : torch::autograd::Function<Hidden> {
  static Tensor forward(torch::autograd::AutogradContext* context, const Tensor& x) {
    context->save_for_backward({x});
    return x.exp();
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               torch::autograd::tensor_list gradient) {
    return {gradient[0] * context->get_saved_variables()[0].exp()};
  }
};

TEST_F(StructureTest, CustomFunctionsBreakWhatTheyRead) {
  nn::Linear a(4, 5), b(5, 3);
  nn::Sequential model(a, b);
  model->to(torch::kDouble);
  const Tensor x = torch::randn({6, 4}, torch::kDouble);
  const Loss loss = [&] {
    const Tensor h = a(x);
    return b(h).square().mean() + Hidden::apply(h).mean();
  };
  EXPECT_THAT(trace(*model, loss).kinds(), IsEmpty());
}

TEST_F(StructureTest, AWrongGradientAndAClippedStepAreSeen) {
  nn::Sequential model(nn::Linear(5, 7), nn::ReLU(), nn::Linear(7, 4));
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  const Loss loss = [&] { return nn::functional::cross_entropy(model->forward(x), targets(8, 4)); };
  const Recorded clipped = measure(*model, loss, 1, [&](StepObservation*) {
    for (const Tensor& parameter : model->parameters()) parameter.grad().mul_(0.5);
  });
  for (const auto& [id, value] : clipped.values.at("conservation_error")) {
    if (id == 3) continue;  // The last bias only has a translation.
    EXPECT_GT(value, 1e-2) << id;
  }
  for (const auto& [id, value] : clipped.values.at("symmetry_residual")) {
    EXPECT_LT(value, 1e-12) << id;
  }
  const Recorded wrong = measure(*model, loss, 1, [](StepObservation* step) {
    step->parameters[0].gradient = step->parameters[0].gradient + 0.1;
  });
  EXPECT_GT(wrong.values.at("symmetry_residual").at(0), 1e-3);
}

TEST_F(StructureTest, ASharedWeightHasToFitAllItsUses) {
  nn::Linear shared(6, 6), first(4, 6), last(6, 2);
  nn::Sequential model(first, shared, last);
  model->to(torch::kDouble);
  randomise(*model);
  const Tensor x = torch::randn({8, 4}, torch::kDouble);
  const Loss loss = [&] {
    Tensor h = torch::relu(first(x));
    for (int i = 0; i < 3; ++i) h = torch::relu(shared(h));
    return last(h).square().mean();
  };
  const Found found = trace(*model, loss);
  expect_invariant(*model, loss);
  const auto recorded = measure(*model, loss);
  for (const auto& [statistic, values] : recorded.values) {
    for (const auto& [id, value] : values) EXPECT_LT(value, 1e-10) << statistic << " " << id;
  }
}

TEST_F(StructureTest, FrozenWeightsAndEvaluationModeOfBatchNormClaimNothing) {
  nn::Sequential model(nn::Linear(5, 7), nn::ReLU(), nn::Linear(7, 4));
  model->to(torch::kDouble);
  model->parameters()[2].set_requires_grad(false);
  const Tensor x = torch::randn({8, 5}, torch::kDouble);
  EXPECT_THAT(trace(*model, [&] { return model->forward(x).square().mean(); }).kinds(), IsEmpty());
  nn::Sequential normed(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Tanh(), nn::Linear(7, 2));
  normed->to(torch::kDouble);
  normed->eval();
  EXPECT_THAT(trace(*normed, [&] { return normed->forward(x).square().mean(); }).kinds(),
              IsEmpty());
}

}  // namespace
}  // namespace tycho
