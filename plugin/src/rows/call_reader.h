#pragma once

#include <fmt/format.h>

#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "rows/rules.h"

namespace tycho::rows {

/// What the rules need of a call.
class CallReader {
 public:
  explicit CallReader(const Call& call);

  std::string_view name() const { return call_.name; }
  int64_t examples() const { return call_.examples; }
  const std::vector<Argument>& tensors() const { return call_.tensors; }
  /// The arguments that decide where the examples lie (see apply()); those without any are left
  /// out.
  const std::vector<const Argument*>& deciding() const { return deciding_; }
  bool decides(const Argument& argument) const;
  /// The tensor at a position; nullptr: none there.
  const Argument* at(size_t position) const;
  /// The first argument, if it decides.
  const Argument* first() const;

  bool has(size_t position) const { return position < call_.inputs.size(); }
  const c10::IValue& input(size_t position) const { return call_.inputs[position]; }
  std::vector<int64_t> ints(size_t position) const;
  /// A dimension, counted from the front.
  int64_t dim(size_t position, size_t dims) const;
  int64_t dim(size_t position, int64_t dims) const {
    return dim(position, static_cast<size_t>(dims));
  }
  std::optional<int64_t> optional_dim(size_t position, size_t dims) const;
  std::vector<int64_t> dims_of(size_t position, int64_t dims) const;

  /// Of an output that has the arguments' elements at the same places, after broadcasting.
  /// `linear`: sums over examples stay sums.
  Layout joined(const at::Tensor& out, bool linear = false) const;
  /// The layouts must agree once each is brought into the dimensions of the output.
  Layout agreed(const std::vector<Layout>& layouts) const;
  Layout unchanged(const Argument* argument) const {
    return argument == nullptr ? none(examples()) : argument->layout;
  }
  /// unchanged(), of something that is not linear: sums over examples are lost.
  Layout nonlinear(const Argument* argument) const {
    const Layout same = unchanged(argument);
    return same.kind == Layout::Kind::kSum ? ended("mixes examples") : same;
  }
  Layout ended(std::string_view what) const {
    return lost(examples(), fmt::format("aten::{} {}", name(), what));
  }

 private:
  const Call& call_;
  std::vector<const Argument*> deciding_;
};

/// Layers, losses and operators over space, by name.
std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)>
layer_rules();
/// Operators that take rows, repeat them or put them together, by name.
std::unordered_map<std::string_view, Layout (*)(const CallReader&, const at::Tensor&)>
moving_rules();
/// chunk, split, unbind.
std::vector<Layout> pieces(const CallReader& call, const std::vector<at::Tensor>& outputs);
std::vector<Layout> packed(const CallReader& call, const std::vector<at::Tensor>& outputs);
std::vector<Layout> unpacked(const CallReader& call, const std::vector<at::Tensor>& outputs);
std::vector<Layout> recurrent(const CallReader& call, const std::vector<at::Tensor>& outputs);

}  // namespace tycho::rows
