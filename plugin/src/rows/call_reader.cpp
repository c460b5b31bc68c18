#include "rows/call_reader.h"

#include <algorithm>

namespace tycho::rows {

CallReader::CallReader(const Call& call) : call_(call) {
  for (const bool differentiable : {true, false}) {
    for (const Argument& argument : call_.tensors) {
      if (argument.differentiable == differentiable && !argument.layout.none()) {
        deciding_.push_back(&argument);
      }
    }
    if (!deciding_.empty()) return;
  }
}

bool CallReader::decides(const Argument& argument) const {
  return std::find(deciding_.begin(), deciding_.end(), &argument) != deciding_.end();
}

const Argument* CallReader::at(size_t position) const {
  for (const Argument& argument : call_.tensors) {
    if (argument.position == position) return &argument;
  }
  return nullptr;
}

const Argument* CallReader::first() const {
  const Argument* argument = at(0);
  return argument != nullptr && decides(*argument) ? argument : nullptr;
}

std::vector<int64_t> CallReader::ints(size_t position) const {
  const c10::IValue& value = input(position);
  if (value.isInt()) return {value.toInt()};
  return value.isIntList() ? value.toIntVector() : std::vector<int64_t>();
}

int64_t CallReader::dim(size_t position, size_t dims) const {
  const int64_t value = has(position) && input(position).isInt() ? input(position).toInt() : 0;
  return value < 0 ? value + static_cast<int64_t>(dims) : value;
}

std::optional<int64_t> CallReader::optional_dim(size_t position, size_t dims) const {
  if (!has(position) || !input(position).isInt()) return std::nullopt;
  return dim(position, dims);
}

std::vector<int64_t> CallReader::dims_of(size_t position, int64_t dims) const {
  std::vector<int64_t> result = ints(position);
  for (int64_t& dim : result) dim = dim < 0 ? dim + dims : dim;
  return result;
}

Layout CallReader::joined(const at::Tensor& out, bool linear) const {
  std::vector<Layout> layouts;
  bool sums = false;
  bool rows = false;
  for (const Argument* argument : deciding_) {
    if (argument->layout.lost()) return argument->layout;
    sums = sums || argument->layout.kind == Layout::Kind::kSum;
    rows = rows || argument->layout.has_rows();
    layouts.push_back(broadcast(argument->layout, argument->sizes, out.sizes()));
  }
  if (sums && (rows || !linear)) return ended("mixes examples");
  if (sums) return sum(examples());
  return agreed(layouts);
}

Layout CallReader::agreed(const std::vector<Layout>& layouts) const {
  if (layouts.empty()) return none(examples());
  for (const Layout& layout : layouts) {
    if (layout.lost()) return layout;
    if (!same(layout, layouts[0]))
      return ended("meets the examples in different dimensions or orders");
  }
  return layouts[0];
}

}  // namespace tycho::rows
