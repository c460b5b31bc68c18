#include "model_info.h"

#include <c10/core/ScalarType.h>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <unordered_map>

#include "options.h"
#include "valid_text.h"

namespace tycho {
namespace {

class Builder {
 public:
  explicit Builder(const Optimizers& optimizers) {
    int32_t group = 0;
    for (torch::optim::Optimizer* optimizer : optimizers) {
      for (auto& parameters : optimizer->param_groups()) {
        for (const at::Tensor& tensor : parameters.params()) {
          groups_.emplace(tensor.unsafeGetTensorImpl(), group);
        }
        ++group;
      }
    }
  }

  void add_tensor(const std::string& given_name, const at::Tensor& tensor) {
    const std::string name = valid_text(given_name);
    if (!tensor.defined() || facts_.ids.count(tensor.unsafeGetTensorImpl()) > 0) return;
    const auto layer = static_cast<uint32_t>(open_layer(name, "tensor"));
    add_parameter(name, "tensor", tensor, layer);
  }

  /// Called for every module in order, with the parameters it owns directly. Names are made valid
  /// text here, once.
  void add_module(const std::string& given_path, const std::string& given_type,
                  const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
    const std::string path = valid_text(given_path);
    const std::string type = valid_text(given_type);
    int64_t layer = -1;
    for (const auto& [given_role, tensor] : parameters) {
      if (!tensor.defined()) continue;
      const std::string role = valid_text(given_role);
      const std::string name = path.empty() ? role : path + "." + role;
      const void* key = tensor.unsafeGetTensorImpl();
      const auto known = facts_.ids.find(key);
      if (known != facts_.ids.end()) {
        facts_.description.mutable_parameter(static_cast<int>(known->second))->add_alias(name);
        continue;
      }
      if (layer < 0) layer = open_layer(path, type);
      add_parameter(name, role, tensor, static_cast<uint32_t>(layer));
    }
  }

  ModelFacts take() { return std::move(facts_); }

 private:
  int64_t open_layer(const std::string& path, const std::string& type) {
    const auto id = static_cast<uint32_t>(facts_.info.layers.size());
    facts_.info.layers.push_back({id, path, type, {}});
    v1::Layer* layer = facts_.description.add_layer();
    layer->set_id(id);
    layer->set_path(path);
    layer->set_type(type);
    return id;
  }

  void add_parameter(const std::string& name, const std::string& role, const at::Tensor& tensor,
                     uint32_t layer) {
    const auto id = static_cast<uint32_t>(facts_.info.parameters.size());
    facts_.ids.emplace(tensor.unsafeGetTensorImpl(), id);
    facts_.info.parameters.push_back({id, name, layer, tensor});
    facts_.info.layers[layer].parameters.push_back(id);
    facts_.description.mutable_layer(static_cast<int>(layer))->add_parameter(id);
    v1::Parameter* parameter = facts_.description.add_parameter();
    parameter->set_id(id);
    parameter->set_name(name);
    parameter->set_layer(layer);
    parameter->set_role(role);
    for (const int64_t extent : tensor.sizes()) parameter->add_shape(extent);
    parameter->set_dtype(dtype_name(tensor.scalar_type()));
    parameter->set_device(tensor.device().str());
    parameter->set_requires_grad(tensor.requires_grad());
    parameter->set_element_count(static_cast<uint64_t>(tensor.numel()));
    const auto group = groups_.find(tensor.unsafeGetTensorImpl());
    parameter->set_parameter_group(group == groups_.end() ? -1 : group->second);
  }

  static std::string dtype_name(at::ScalarType type) {
    switch (type) {
      case at::kFloat:
        return "float";
      case at::kDouble:
        return "double";
      case at::kHalf:
        return "half";
      case at::kBFloat16:
        return "bfloat16";
      default:
        return c10::toString(type);
    }
  }

  ModelFacts facts_;
  std::unordered_map<const void*, int32_t> groups_;
};

}  // namespace

ModelFacts describe(torch::nn::Module& model, const Optimizers& optimizers) {
  Builder builder(optimizers);
  // The root by hand: named_modules() wants it to be owned by a shared_ptr.
  const auto add = [&](const std::string& path, torch::nn::Module& module) {
    std::vector<std::pair<std::string, at::Tensor>> own;
    for (const auto& item : module.named_parameters(/*recurse=*/false)) {
      own.emplace_back(item.key(), item.value());
    }
    builder.add_module(path, module.name(), own);
  };
  add("", model);
  for (const auto& item :
       model.named_modules(/*name_prefix=*/std::string(), /*include_self=*/false)) {
    if (item.value()) add(item.key(), *item.value());
  }
  return builder.take();
}

ModelFacts describe(const std::vector<std::pair<std::string, at::Tensor>>& named,
                    const Optimizers& optimizers) {
  Builder builder(optimizers);
  for (const auto& [name, tensor] : named) builder.add_tensor(name, tensor);
  return builder.take();
}

ModelFacts describe(torch::jit::Module& model, const Optimizers& optimizers) {
  Builder builder(optimizers);
  for (const auto& item : model.named_modules()) {
    std::vector<std::pair<std::string, at::Tensor>> own;
    for (const auto& parameter : item.value.named_parameters(/*recurse=*/false)) {
      own.emplace_back(parameter.name, parameter.value);
    }
    const auto type = item.value.type()->name();
    builder.add_module(item.name, type ? type->qualifiedName() : "torch.jit.Module", own);
  }
  return builder.take();
}

void select_layers(const SessionOptions& options, ModelFacts* facts) {
  const auto check = [&](const char* option, const std::vector<std::string>& patterns) {
    for (const std::string& pattern : patterns) {
      const bool used =
          std::any_of(facts->info.layers.begin(), facts->info.layers.end(),
                      [&](const LayerInfo& layer) { return matches(pattern, layer.path); });
      if (!used) {
        throw OptionError(
            fmt::format("tycho: option {} = \"{}\": no layer's path matches", option, pattern));
      }
    }
  };
  check("include", options.include());
  check("exclude", options.exclude());
  if (options.include().empty() && options.exclude().empty()) return;
  const auto any = [](const std::vector<std::string>& patterns, const std::string& path) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const std::string& pattern) { return matches(pattern, path); });
  };
  ModelFacts kept;
  for (const LayerInfo& layer : facts->info.layers) {
    if (!options.include().empty() && !any(options.include(), layer.path)) continue;
    if (any(options.exclude(), layer.path)) continue;
    const auto layer_id = static_cast<uint32_t>(kept.info.layers.size());
    LayerInfo new_layer{layer_id, layer.path, layer.type, {}};
    v1::Layer* described = kept.description.add_layer();
    *described = facts->description.layer(static_cast<int>(layer.id));
    described->set_id(layer_id);
    described->clear_parameter();
    for (const uint32_t old : layer.parameters) {
      const auto id = static_cast<uint32_t>(kept.info.parameters.size());
      ParameterInfo parameter = facts->info.parameters[old];
      parameter.id = id;
      parameter.layer = layer_id;
      kept.ids.emplace(parameter.tensor.unsafeGetTensorImpl(), id);
      v1::Parameter* described_parameter = kept.description.add_parameter();
      *described_parameter = facts->description.parameter(static_cast<int>(old));
      described_parameter->set_id(id);
      described_parameter->set_layer(layer_id);
      described->add_parameter(id);
      new_layer.parameters.push_back(id);
      kept.info.parameters.push_back(std::move(parameter));
    }
    kept.info.layers.push_back(std::move(new_layer));
  }
  if (kept.info.layers.empty()) {
    throw OptionError("tycho: options include and exclude leave no layer to observe");
  }
  *facts = std::move(kept);
}

}  // namespace tycho
