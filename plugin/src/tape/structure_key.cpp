#include "tape/structure_key.h"

#include <ATen/ATen.h>

#include <cstring>
#include <string_view>
#include <unordered_set>

namespace tycho::tape {
namespace {

class Key {
 public:
  uint64_t value() const { return value_; }

  void add(uint64_t number) {
    // SplitMix64's mixing of the sum.
    uint64_t z = value_ * 0x9e3779b97f4a7c15U + number + 0x632be59bd9b4e019U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    value_ = z ^ (z >> 31);
  }
  void add(const void* bytes, size_t size) {
    add(size);
    const char* at = static_cast<const char*>(bytes);
    for (; size >= sizeof(uint64_t); size -= sizeof(uint64_t), at += sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, at, sizeof(word));
      add(word);
    }
    uint64_t rest = 0;
    std::memcpy(&rest, at, size);
    if (size > 0) add(rest);
  }
  void add(std::string_view text) { add(text.data(), text.size()); }
  void add(at::IntArrayRef numbers) { add(numbers.data(), numbers.size() * sizeof(int64_t)); }
  void add_sizes(const at::Tensor& tensor) {
    add(tensor.sizes());
    add(static_cast<uint64_t>(tensor.scalar_type()));
  }
  void add_numbers(const at::Tensor& tensor) {
    add_sizes(tensor);
    const at::Tensor all = tensor.detach().contiguous();
    add(all.data_ptr(), all.nbytes());
  }
  /// False: not an argument that can be compared.
  bool add_argument(const c10::IValue& value) {
    if (value.isNone()) {
      add(1);
    } else if (value.isInt()) {
      add(2);
      add(static_cast<uint64_t>(value.toInt()));
    } else if (value.isBool()) {
      add(value.toBool() ? 3 : 4);
    } else if (value.isDouble()) {
      const double number = value.toDouble();
      add(&number, sizeof(number));
    } else if (value.isString()) {
      add(std::string_view(value.toStringRef()));
    } else if (value.isDevice()) {
      add(std::string_view(value.toDevice().str()));
    } else if (value.isTensor()) {
      add(5);  // Undefined: others have numbers.
      return !value.toTensor().defined();
    } else if (value.isList()) {
      add(6);
      for (const c10::IValue& element : value.toListRef()) {
        if (!add_argument(element)) return false;
      }
      add(7);
    } else {
      return false;
    }
    return true;
  }

 private:
  uint64_t value_ = 0;
};

}  // namespace

std::optional<uint64_t> structure_key(const LossTape& tape, const std::vector<RowSource>& sources) {
  Key key;
  std::unordered_set<ValueId> added;
  for (const RowSource& source : sources) {
    if (!may_change(tape, source.value)) continue;
    added.insert(source.value);
    key.add(source.value);
    key.add_sizes(tape.values()[source.value].tensor);
    key.add(static_cast<uint64_t>(source.layout.dim));
    key.add_numbers(rows::labels(source.layout));
  }
  const auto add_value = [&](ValueId id) {
    key.add(id);
    const Value& value = tape.values()[id];
    if (!added.insert(id).second) return true;
    key.add(value.kind);
    if (value.kind == Value::kComputed) return true;
    if (!value.tensor.defined() || value.tensor.layout() != at::kStrided) return false;
    if (value.kind == Value::kParameter) {
      key.add_sizes(value.tensor);
    } else {
      key.add_numbers(value.tensor);
    }
    return true;
  };
  for (const Call& call : tape.calls()) {
    if (call.operation) {
      key.add(std::string_view(call.operation->operator_name().name));
      key.add(std::string_view(call.operation->operator_name().overload_name));
    } else {
      key.add(call.view.sizes);
      key.add(call.view.strides);
      key.add(static_cast<uint64_t>(call.view.offset));
    }
    for (const Argument& argument : call.arguments) {
      key.add(argument.index());
      if (const auto* value = std::get_if<c10::IValue>(&argument)) {
        if (!key.add_argument(*value)) return std::nullopt;
      } else if (const auto* id = std::get_if<ValueId>(&argument)) {
        if (!add_value(*id)) return std::nullopt;
      } else {
        for (const auto& each : std::get<TensorList>(argument).values) {
          key.add(each.has_value());
          if (each && !add_value(*each)) return std::nullopt;
        }
      }
    }
    for (const auto& result : call.results) key.add(result ? *result : kNoValue);
  }
  return key.value();
}

}  // namespace tycho::tape
