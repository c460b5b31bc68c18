#pragma once

#include <string>

#include "tycho/v1/run.pb.h"

namespace tycho::analyzer {

/// The type without namespaces and LibTorch's "Impl": "Linear".
std::string layer_type(const v1::Layer& layer);

/// What a layer is and how large: "Linear 96 -> 384", "Conv2d 3 -> 16, 5 x 5", "LayerNorm 96". The
/// type without LibTorch's namespace and "Impl"; extents of the weight as LibTorch lays them out.
/// Empty where the type is not known.
std::string layer_kind(const v1::ModelDescription& model, const v1::Layer& layer);

/// "blocks.0.mlp.0 (Linear 96 -> 384)"; "(root)" for the path of the root; "layer 7" where the
/// model has no such layer.
std::string layer_name(const v1::ModelDescription& model, uint32_t id);

/// The scope of a finding for people: the layer's name for "layer:<path>", the parameter's for
/// "param:<name>", "number 1" for "index:0"; others as they are.
std::string scope_label(const v1::ModelDescription& model, const std::string& scope);

/// The block a module belongs to: its path up to the last number but the name's end, "blocks.3" for
/// "blocks.3.attention.out" and "layers" for "layers.3"; the whole path where nothing is numbered.
std::string block_of(const std::string& path);

/// The path with "*" for numbers that count blocks, and the type: "blocks.*.mlp.0 (Linear)". Layers
/// of one kind do the same work in their blocks.
std::string kind_of(const v1::Layer& layer);

}  // namespace tycho::analyzer
