#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "structure/structure_tracer.h"

namespace tycho::structure {
namespace {

bool is_vector(const ModelInfo& model, uint32_t parameter) {
  return model.parameters[parameter].tensor.dim() < 2;
}

bool is_gain(const ModelInfo& model, const SymmetryMember& member) {
  const std::string& type = model.layers[model.parameters[member.parameter].layer].type;
  return is_vector(model, member.parameter) && type.find("Norm") != std::string::npos;
}

const char* kind_of(const ModelInfo& model, const SymmetryClass& found,
                    const std::vector<SymmetryMember>& members) {
  std::set<uint32_t> weights;
  bool inverse = false;
  bool gains = true;
  for (const SymmetryMember& member : members) {
    if (!is_vector(model, member.parameter)) weights.insert(member.parameter);
    if (member.sign > 0) gains = gains && is_gain(model, member);
    inverse = inverse || member.sign < 0;
  }
  if (!inverse && weights.size() == 1) return "scale";
  if (!inverse || found.uniform) return "joint_scale";
  if (found.product) return "query_key";
  if (gains) return "norm_gain";
  if (found.attention) return "value_output";
  return found.block > 1 ? "matrix_rescale" : "rescale";
}

std::string label_of(const ModelInfo& model, const std::vector<SymmetryMember>& members) {
  const auto side = [&](int sign) {
    std::string text;
    int named = 0;
    int more = 0;
    for (const SymmetryMember& member : members) {
      if (member.sign != sign) continue;
      // A bias goes without saying beside its weight.
      if (is_vector(model, member.parameter) && named > 0) continue;
      if (named == 3) {
        ++more;
        continue;
      }
      const ParameterInfo& parameter = model.parameters[member.parameter];
      if (named++ > 0) text += " + ";
      text += parameter.name;
      if (member.count < parameter.tensor.size(0))
        text += fmt::format("[{}:{}]", member.begin, member.begin + member.count);
    }
    if (more > 0) text += fmt::format(" + {} more", more);
    return text;
  };
  const std::string inverse = side(-1);
  return inverse.empty() ? side(1) : side(1) + " -> " + inverse;
}

}  // namespace

void StructureTracer::collect_groups(Structure* result, double loss_scale) {
  for (const ParameterState& parameter : parameters_) {
    for (const ParameterUse& use : parameter.uses) {
      for (const auto& [dim, slot] : use.slots) {
        if (parameter.tainted) classes_.break_all(slot.channels);
        const SymmetryClass& found = classes_.at(slot.channels);
        const int sign = slot.sign * classes_.find(slot.channels).sign;
        // Only rows can be told apart.
        const bool rows =
            slot.axes == std::vector<int64_t>{0} && slot.view[0] == found.channels && sign > 0;
        if (!found.pieces.empty() && !rows) classes_.break_all(slot.channels);
      }
    }
  }
  std::map<int, std::vector<SymmetryMember>> members;
  std::set<uint32_t> gains;
  for (size_t id = 0; id < parameters_.size(); ++id) {
    std::set<std::tuple<int64_t, int64_t, int>> done;  // several uses are one member
    for (const ParameterUse& use : parameters_[id].uses) {
      for (const auto& [dim, slot] : use.slots) {
        if (slot.gain) gains.insert(static_cast<uint32_t>(id));
        if (!done.emplace(use.begin, use.count, dim).second) continue;
        const auto add = [&, &slot = slot](int channels, int64_t begin, int64_t count,
                                           std::vector<int64_t> view) {
          const SymmetryClasses::Found found = classes_.find(channels);
          SymmetryMember member;
          member.parameter = static_cast<uint32_t>(id);
          member.begin = begin;
          member.count = count;
          member.view = std::move(view);
          member.axes = slot.axes;
          member.sign = slot.sign * found.sign;
          members[found.root].push_back(std::move(member));
        };
        const std::vector<int>& pieces = classes_.at(slot.channels).pieces;
        if (pieces.empty()) {
          add(slot.channels, use.begin, use.count, slot.view);
          continue;
        }
        const int64_t part = use.count / static_cast<int64_t>(pieces.size());
        for (size_t i = 0; i < pieces.size(); ++i) {
          std::vector<int64_t> view = slot.view;
          view[0] = part;
          add(pieces[i], use.begin + static_cast<int64_t>(i) * part, part, std::move(view));
        }
      }
    }
  }
  std::map<int, at::Tensor> epsilon_terms;
  for (const EpsilonTerm& term : shared_->terms) {
    const SymmetryClasses::Found found = classes_.find(term.channels);
    at::Tensor sum = term.sum * (term.sign * found.sign / loss_scale);
    if (classes_.at(found.root).uniform) sum = sum.sum();
    at::Tensor& total = epsilon_terms[found.root];
    total = total.defined() ? total + sum : sum;
  }
  const auto emit = [&](SymmetryGroup group) {
    v1::SymmetryGroup* described = result->description.add_symmetry_group();
    described->set_id(static_cast<uint32_t>(result->groups.size()));
    described->set_kind(group.kind);
    described->set_label(label_of(model_, group.members));
    std::set<uint32_t> named;
    for (const SymmetryMember& member : group.members) {
      if (named.insert(member.parameter).second) described->add_parameter(member.parameter);
    }
    result->groups.push_back(std::move(group));
  };
  for (auto& [root, of_class] : members) {
    const SymmetryClass& found = classes_.at(root);
    const auto positive = std::count_if(of_class.begin(), of_class.end(),
                                        [](const SymmetryMember& m) { return m.sign > 0; });
    const bool inverse = positive < static_cast<std::ptrdiff_t>(of_class.size());
    SymmetryGroup group;
    group.channels = found.channels;
    group.block = found.block;
    group.uniform = found.uniform;
    group.members = of_class;
    if (positive == 0) {  // signs are relative
      for (SymmetryMember& member : group.members) member.sign = 1;
    }
    if (found.shift_seen && !found.shift_broken && !inverse) {
      SymmetryGroup shifts = group;
      auto& of_shifts = shifts.members;
      of_shifts.erase(
          std::remove_if(of_shifts.begin(), of_shifts.end(),
                         [&](const SymmetryMember& m) { return gains.count(m.parameter) > 0; }),
          of_shifts.end());
      shifts.kind = "translation";
      if (!of_shifts.empty()) emit(std::move(shifts));
    }
    // Without a normalisation, what nothing else undoes is not scale-invariant: it is not used.
    const bool undone = found.normalized || (inverse && positive > 0);
    if (found.scale_broken || !undone || (found.normalized && shared_->failed)) continue;
    group.kind = kind_of(model_, found, group.members);
    const auto epsilon = epsilon_terms.find(root);
    if (epsilon != epsilon_terms.end()) {
      group.epsilon_term = positive == 0 ? -epsilon->second : epsilon->second;
    }
    emit(std::move(group));
  }
}

}  // namespace tycho::structure
