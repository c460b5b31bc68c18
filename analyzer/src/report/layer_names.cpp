#include "layer_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace tycho::analyzer {
namespace {

std::string short_type(const std::string& type) {
  const size_t colon = type.rfind("::");
  std::string name = colon == std::string::npos ? type : type.substr(colon + 2);
  const std::string suffix = "Impl";
  if (name.size() > suffix.size() &&
      name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0)
    name.resize(name.size() - suffix.size());
  return name;
}

bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> parts;
  size_t from = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.', from)) {
    parts.push_back(path.substr(from, dot - from));
    from = dot + 1;
  }
  parts.push_back(path.substr(from));
  return parts;
}

bool is_number(const std::string& text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// Place of the number that counts the blocks: the first that something with a name follows, so that
// "blocks.3.mlp.0" is of block 3 and the layers of "net.0", "net.2" are one block. -1: none.
int block_number(const std::vector<std::string>& parts) {
  for (size_t i = 1; i + 1 < parts.size(); ++i) {
    if (is_number(parts[i])) return static_cast<int>(i);
  }
  return -1;
}

std::string join(const std::vector<std::string>& parts, size_t count) {
  return fmt::format("{}", fmt::join(parts.begin(), parts.begin() + static_cast<long>(count), "."));
}

}  // namespace

std::string layer_type(const v1::Layer& layer) { return short_type(layer.type()); }

std::string layer_kind(const v1::ModelDescription& model, const v1::Layer& layer) {
  const std::string type = layer_type(layer);
  std::vector<int64_t> shape;
  for (const uint32_t id : layer.parameter()) {
    if (id >= static_cast<uint32_t>(model.parameter_size())) continue;
    const v1::Parameter& parameter = model.parameter(static_cast<int>(id));
    if (parameter.role() != "weight" && parameter.role() != "weight_ih_l0") continue;
    shape.assign(parameter.shape().begin(), parameter.shape().end());
    break;
  }
  if (type.empty() || shape.empty()) return type;
  if (type == "Linear" && shape.size() == 2)
    return fmt::format("{} {} -> {}", type, shape[1], shape[0]);
  if (begins(type, "Conv") && shape.size() >= 3) {
    // Of grouped convolutions the input's channels are those of a group.
    const bool transposed = begins(type, "ConvTranspose");
    return fmt::format("{} {} -> {}, {}", type, shape[transposed ? 0 : 1],
                       shape[transposed ? 1 : 0], fmt::join(shape.begin() + 2, shape.end(), " x "));
  }
  const int gates = type == "LSTM" ? 4 : type == "GRU" ? 3 : type == "RNN" ? 1 : 0;
  if (gates > 0 && shape.size() == 2)
    return fmt::format("{} {} -> {}", type, shape[1], shape[0] / gates);
  return fmt::format("{} {}", type, fmt::join(shape, " x "));
}

std::string layer_name(const v1::ModelDescription& model, uint32_t id) {
  if (id >= static_cast<uint32_t>(model.layer_size())) return fmt::format("layer {}", id);
  const v1::Layer& layer = model.layer(static_cast<int>(id));
  const std::string path = layer.path().empty() ? "(root)" : layer.path();
  const std::string kind = layer_kind(model, layer);
  return kind.empty() ? path : path + " (" + kind + ")";
}

std::string scope_label(const v1::ModelDescription& model, const std::string& scope) {
  if (begins(scope, "layer:")) {
    const std::string path = scope.substr(6);
    for (const v1::Layer& layer : model.layer()) {
      if (layer.path() == path) return layer_name(model, layer.id());
    }
    return path;
  }
  if (begins(scope, "param:")) return scope.substr(6);
  if (begins(scope, "index:") && is_number(scope.substr(6)) && scope.size() < 16)
    return fmt::format("number {}", std::stoull(scope.substr(6)) + 1);
  return scope;
}

std::string block_of(const std::string& path) {
  const std::vector<std::string> parts = split(path);
  const int block = block_number(parts);
  if (block >= 0) return join(parts, static_cast<size_t>(block) + 1);
  if (parts.size() > 1) return join(parts, parts.size() - 1);
  return path.empty() ? "(root)" : path;
}

std::string kind_of(const v1::Layer& layer) {
  std::vector<std::string> parts = split(layer.path());
  const int block = block_number(parts);
  if (block >= 0) {
    parts[static_cast<size_t>(block)] = "*";
  } else if (parts.size() > 1 && is_number(parts.back())) {
    parts.back() = "*";
  }
  const std::string type = layer_type(layer);
  return join(parts, parts.size()) + (type.empty() ? "" : " (" + type + ")");
}

}  // namespace tycho::analyzer
