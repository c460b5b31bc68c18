#include "src/report/layer_names.h"

#include <gtest/gtest.h>

#include <vector>

namespace tycho::analyzer {
namespace {

v1::ModelDescription one_layer(const std::string& path, const std::string& type,
                               const std::string& role, const std::vector<int64_t>& shape) {
  v1::ModelDescription model;
  v1::Layer* layer = model.add_layer();
  layer->set_path(path);
  layer->set_type(type);
  layer->add_parameter(0);
  v1::Parameter* parameter = model.add_parameter();
  parameter->set_role(role);
  parameter->set_name(path + "." + role);
  for (const int64_t extent : shape) parameter->add_shape(extent);
  return model;
}

std::string name(const std::string& type, const std::vector<int64_t>& shape,
                 const std::string& role = "weight") {
  return layer_name(one_layer("a", type, role, shape), 0);
}

TEST(LayerNamesTest, SayWhatALayerIsAndHowLarge) {
  EXPECT_EQ(name("torch::nn::LinearImpl", {384, 96}), "a (Linear 96 -> 384)");
  EXPECT_EQ(name("torch::nn::Conv2dImpl", {16, 3, 5, 7}), "a (Conv2d 3 -> 16, 5 x 7)");
  EXPECT_EQ(name("torch::nn::ConvTranspose2dImpl", {16, 3, 5, 5}),
            "a (ConvTranspose2d 16 -> 3, 5 x 5)");
  EXPECT_EQ(name("torch::nn::LSTMImpl", {400, 65}, "weight_ih_l0"), "a (LSTM 65 -> 100)");
  EXPECT_EQ(name("torch::nn::GRUImpl", {300, 65}, "weight_ih_l0"), "a (GRU 65 -> 100)");
  EXPECT_EQ(name("torch::nn::EmbeddingImpl", {65, 96}), "a (Embedding 65 x 96)");
  EXPECT_EQ(name("torch::nn::LayerNormImpl", {96}), "a (LayerNorm 96)");
  EXPECT_EQ(name("Attention", {4, 4}), "a (Attention 4 x 4)");
  EXPECT_EQ(name("Gate", {1}, "scale"), "a (Gate)");  // no weight
  EXPECT_EQ(name("", {4, 4}), "a");
  EXPECT_EQ(name("torch::nn::Impl", {}), "a (Impl)");
  EXPECT_EQ(layer_name(v1::ModelDescription(), 7), "layer 7");
  EXPECT_EQ(layer_name(one_layer("", "torch::nn::LinearImpl", "weight", {2, 1}), 0),
            "(root) (Linear 1 -> 2)");
}

TEST(LayerNamesTest, ScopesAreSaidAsNames) {
  const auto model = one_layer("fc.1", "torch::nn::LinearImpl", "weight", {2, 1});
  EXPECT_EQ(scope_label(model, "layer:fc.1"), "fc.1 (Linear 1 -> 2)");
  EXPECT_EQ(scope_label(model, "layer:gone"), "gone");
  EXPECT_EQ(scope_label(model, "param:fc.1.weight"), "fc.1.weight");
  EXPECT_EQ(scope_label(model, "index:0"), "number 1");
  EXPECT_EQ(scope_label(model, "index:x"), "index:x");
  EXPECT_EQ(scope_label(model, "run"), "run");
}

TEST(LayerNamesTest, LayersAreGroupedByBlockAndByKind) {
  const auto kind = [](const std::string& path) {
    v1::Layer layer;
    layer.set_path(path);
    layer.set_type("torch::nn::LinearImpl");
    return kind_of(layer);
  };
  EXPECT_EQ(block_of("blocks.17.mlp.0"), "blocks.17");
  EXPECT_EQ(kind("blocks.17.mlp.0"), "blocks.*.mlp.0 (Linear)");
  EXPECT_EQ(block_of("layers.3"), "layers");
  EXPECT_EQ(kind("layers.3"), "layers.* (Linear)");
  EXPECT_EQ(block_of("encoder.out"), "encoder");
  EXPECT_EQ(kind("encoder.out"), "encoder.out (Linear)");
  EXPECT_EQ(block_of("head"), "head");
  EXPECT_EQ(block_of(""), "(root)");
  EXPECT_EQ(kind(""), " (Linear)");
}

}  // namespace
}  // namespace tycho::analyzer
