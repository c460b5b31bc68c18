#include "model_source.h"

#include <algorithm>
#include <memory>

namespace tycho {
namespace {

class Tensors {
 public:
  Tensors(const std::vector<at::Tensor>& tensors, Optimizers optimizers)
      : optimizers_(std::move(optimizers)), held_(held_tensors(optimizers_)) {
    for (const at::Tensor& tensor : tensors) add(tensor);
  }

  /// Follows the optimizers.
  std::vector<at::Tensor> tensors() {
    const std::vector<at::Tensor> now = held_tensors(optimizers_);
    if (!same_tensors(now, held_)) follow(now);
    std::vector<at::Tensor> result;
    for (const auto& [name, tensor] : named_) result.push_back(tensor);
    return result;
  }

  ModelFacts described() {
    (void)tensors();
    return describe(named_, optimizers_);
  }

 private:
  void add(const at::Tensor& tensor) {
    named_.emplace_back(std::to_string(next_number_++), tensor);
  }

  void follow(const std::vector<at::Tensor>& now) {
    std::vector<std::pair<std::string, at::Tensor>> kept;
    std::vector<at::Tensor> taken = held_;
    for (const auto& [name, tensor] : named_) {
      const auto place = std::find_if(held_.begin(), held_.end(), [&, &t = tensor](const auto& h) {
        return h.defined() && h.is_same(t);
      });
      if (place == held_.end() || contains(now, tensor)) {
        kept.emplace_back(name, tensor);
        continue;
      }
      const auto index = static_cast<size_t>(place - held_.begin());
      const at::Tensor there = index < now.size() ? now[index] : at::Tensor();
      if (!there.defined() || contains(taken, there)) continue;
      kept.emplace_back(name, there);
      taken.push_back(there);
    }
    named_ = std::move(kept);
    for (const at::Tensor& tensor : now) {
      if (tensor.defined() && !contains(taken, tensor)) add(tensor);
    }
    held_ = now;
  }

  Optimizers optimizers_;
  std::vector<at::Tensor> held_;
  std::vector<std::pair<std::string, at::Tensor>> named_;
  size_t next_number_ = 0;
};

}  // namespace

ModelSource source_of(torch::nn::Module& model, const Optimizers& optimizers) {
  return {[&model, optimizers] { return describe(model, optimizers); },
          [&model] { return model.parameters(); }};
}

ModelSource source_of(torch::jit::Module& model, const Optimizers& optimizers) {
  return {[&model, optimizers] { return describe(model, optimizers); },
          [&model] {
            std::vector<at::Tensor> tensors;
            for (const at::Tensor& tensor : model.parameters()) tensors.push_back(tensor);
            return tensors;
          }};
}

ModelSource source_of(const std::vector<at::Tensor>& tensors, const Optimizers& optimizers) {
  const auto named = std::make_shared<Tensors>(tensors, optimizers);
  return {[named] { return named->described(); }, [named] { return named->tensors(); }};
}

std::vector<at::Tensor> held_tensors(const Optimizers& optimizers) {
  std::vector<at::Tensor> held;
  for (torch::optim::Optimizer* optimizer : optimizers) {
    for (auto& group : optimizer->param_groups()) {
      held.insert(held.end(), group.params().begin(), group.params().end());
      held.emplace_back();
    }
  }
  return held;
}

bool contains(const std::vector<at::Tensor>& list, const at::Tensor& tensor) {
  return std::any_of(list.begin(), list.end(), [&](const at::Tensor& each) {
    return each.defined() && each.is_same(tensor);
  });
}

bool same_tensors(const std::vector<at::Tensor>& left, const std::vector<at::Tensor>& right) {
  return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                    [](const at::Tensor& a, const at::Tensor& b) {
                      return a.unsafeGetTensorImpl() == b.unsafeGetTensorImpl();
                    });
}

}  // namespace tycho
