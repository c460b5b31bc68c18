#include "tape/row_examples.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <optional>

#include "error_text.h"

namespace tycho::tape {
namespace {

// Numbers that are tried in the place of one, until one differs; of many numbers some do.
constexpr int kMostTries = 12;
constexpr int64_t kManyNumbers = 100000;
constexpr int64_t kFewRows = 4;

int ones(uint64_t code) { return __builtin_popcountll(code); }

/// As many different numbers with half of their bits set, of as few bits as possible.
std::vector<uint64_t> half_weight_codes(int64_t count, int* bits) {
  const auto choices = [](int n) {
    double all = 1;
    for (int i = 0; i < n / 2; ++i) all = all * (n - i) / (i + 1);
    return all;
  };
  *bits = 2;
  while (choices(*bits) < static_cast<double>(count)) ++*bits;
  std::vector<uint64_t> codes;
  uint64_t code = (uint64_t{1} << (*bits / 2)) - 1;
  while (static_cast<int64_t>(codes.size()) < count) {
    codes.push_back(code);
    // The next larger number with as many ones.
    const uint64_t lowest = code & (~code + 1);
    const uint64_t ripple = code + lowest;
    code = (((ripple ^ code) >> 2) / lowest) | ripple;
  }
  return codes;
}

std::string_view base_name(const Call& call) {
  const std::string_view name = call.operation->operator_name().name;
  const size_t colons = name.rfind(':');
  return colons == std::string_view::npos ? name : name.substr(colons + 1);
}

/// A tensor of the same sizes, and where possible strides.
at::Tensor in_shape_of(const at::Tensor& like, const at::Tensor& values) {
  at::Tensor result = like.is_non_overlapping_and_dense()
                          ? at::empty_strided(like.sizes(), like.strides(), like.options())
                          : at::empty(like.sizes(), like.options());
  result.copy_(values);
  if (like.requires_grad()) result.requires_grad_(true);
  return result;
}

/// The data with those of some examples (`moved`) replaced: each number by one that stands
/// elsewhere in the same column, or where there are few rows anywhere, so that numbers stay what
/// such numbers are. `any`: set where one changed.
at::Tensor exchanged(const at::Tensor& tensor, const rows::Layout& layout,
                     const std::vector<bool>& moved, uint64_t seed, bool* any) {
  const at::Tensor apart = tensor.detach().movedim(layout.dim, 0);
  const int64_t size = apart.size(0);
  const at::Tensor values = apart.reshape({size, -1});
  const at::Tensor labels = rows::labels(layout).contiguous();
  at::Tensor moves = at::zeros({size, 1}, at::kBool);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t label = labels.data_ptr<int64_t>()[i];
    moves.data_ptr<bool>()[i] = label >= 0 && moved[static_cast<size_t>(label)];
  }
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto draw = [&] {
    if (size >= kFewRows) {
      return values.gather(0, at::randint(size, values.sizes(), generator, at::kLong));
    }
    const at::Tensor all = values.reshape({-1});
    const at::Tensor from = at::randint(all.numel(), all.sizes(), generator, at::kLong);
    return all.index_select(0, from).reshape(values.sizes());
  };
  const bool integers = !values.is_floating_point();  // Negative ones mean something else.
  at::Tensor result = values;
  at::Tensor open = moves.expand(values.sizes());
  if (integers) open = open.logical_and(values.ge(0));
  const int tries = values.numel() <= kManyNumbers ? kMostTries : 1;
  for (int k = 0; k < tries && values.numel() > 0 && open.any().item<bool>(); ++k) {
    const at::Tensor other = draw();
    at::Tensor use = open.logical_and(other.ne(values));
    if (integers) use = use.logical_and(other.ge(0));
    result = at::where(use, other, result);
    open = open.logical_and(use.logical_not());
    *any = *any || use.any().item<bool>();
  }
  return in_shape_of(tensor, result.reshape(apart.sizes()).movedim(0, layout.dim));
}

at::Tensor any_of_last(const at::Tensor& changed, int64_t features) {
  if (features == 0) return changed;
  return changed.flatten(changed.dim() - features).any(-1);
}

}  // namespace

// Integers only where all that is done with them is to look up rows of a table: others say where
// rows lie, or are targets, whose weights the loss may divide by.
bool may_change(const LossTape& tape, ValueId value) {
  const at::Tensor& tensor = tape.values()[value].tensor;
  if (!tensor.defined() || tensor.layout() != at::kStrided) return false;
  if (tensor.is_floating_point()) return true;
  if (tensor.scalar_type() != at::kLong && tensor.scalar_type() != at::kInt) return false;
  for (const Call& call : tape.calls()) {
    bool takes = false;
    visit_arguments(call, [&](ValueId each) { takes = takes || each == value; });
    if (!takes) continue;
    if (!call.operation || call.arguments.size() < 2) return false;
    const std::string_view name = base_name(call);
    const bool looks_up = name == "embedding" || name == "embedding_bag";
    const auto* second = std::get_if<ValueId>(&call.arguments[1]);
    size_t times = 0;
    visit_arguments(call, [&](ValueId each) { times += each == value; });
    if (!looks_up || second == nullptr || *second != value || times != 1) return false;
  }
  return true;
}

struct RowExamples::Seen {
  at::Tensor output, gradient;  // of the step's own data
  at::Tensor changed;           // in this evaluation
};

RowExamples::RowExamples(const LossTape& tape, const std::vector<RowSource>& sources,
                         const std::vector<RowsWanted>& wanted, int64_t examples,
                         const std::vector<at::Tensor>& parameters, int64_t memory)
    : examples_(examples) {
  for (const RowsWanted& each : wanted) features_[each.value] = each.features;
  try {
    experiment(tape, sources, parameters, memory);
  } catch (const std::exception& error) {
    why_not_ = "with other data the step's operators cannot be called again: " + first_line(error);
  }
}

void RowExamples::experiment(const LossTape& tape, const std::vector<RowSource>& sources,
                             const std::vector<at::Tensor>& parameters, int64_t memory) {
  int bits = 0;
  code_of_ = half_weight_codes(examples_, &bits);
  for (size_t i = 0; i < code_of_.size(); ++i) example_of_[code_of_[i]] = static_cast<int64_t>(i);
  std::vector<RowSource> used;
  for (const RowSource& source : sources) {
    if (tape.values()[source.value].kind == Value::kComputed) continue;
    if (may_change(tape, source.value)) used.push_back(source);
  }
  if (used.empty()) {
    why_not_ = "no input of the operators is known to hold data of the examples";
    return;
  }
  std::vector<at::Tensor> trained;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.requires_grad()) trained.push_back(parameter);
  }
  std::unordered_map<ValueId, Seen> seen;
  std::unordered_map<ValueId, at::Tensor> choices;
  int64_t bytes = 0;
  bool base = true;
  bool any = false;
  LossTape::Replay replay;
  replay.choices = &choices;
  replay.computed = [&](ValueId value, const at::Tensor& tensor) {
    const auto features = features_.find(value);
    if (features == features_.end() || !tensor.requires_grad()) return;
    const at::NoGradGuard no_grad;
    Seen& own = seen[value];
    if (base) {
      bytes += 2 * static_cast<int64_t>(tensor.nbytes());
      if (bytes > memory) throw std::runtime_error("the outputs do not fit tape_memory");
      own.output = tensor.detach().clone();
    } else {
      own.changed = any_of_last(tensor.detach().ne(own.output), features->second);
    }
    tensor.register_hook([&own, &base, last = features->second](const at::Tensor& d) {
      if (!d.defined()) return;
      const at::NoGradGuard without;
      if (base) {
        own.gradient = d.detach().clone();
      } else if (own.gradient.defined()) {
        own.changed = own.changed.logical_or(any_of_last(d.detach().ne(own.gradient), last));
      }
    });
  };
  for (int bit = -1; bit < bits; ++bit) {
    base = bit < 0;
    std::vector<bool> moved(static_cast<size_t>(examples_));
    for (size_t i = 0; !base && i < moved.size(); ++i) moved[i] = (code_of_[i] >> bit) & 1;
    for (const RowSource& source : used) {
      const at::NoGradGuard no_grad;
      const uint64_t seed = 977 * static_cast<uint64_t>(bit + 1) + source.value;
      replay.given[source.value] =
          exchanged(tape.values()[source.value].tensor, source.layout, moved, seed, &any);
    }
    for (auto& [value, own] : seen) own.changed.reset();
    {
      const at::Tensor loss = tape.loss(replay);
      (void)torch::autograd::grad({loss}, trained, {}, /*retain_graph=*/false,
                                  /*create_graph=*/false, /*allow_unused=*/true);
    }
    const at::NoGradGuard no_grad;
    for (auto& [value, own] : seen) {
      if (base) {
        const int64_t rows = own.output.dim() - features_[value];
        if (rows < 0) continue;
        codes_[value] =
            at::zeros(own.output.sizes().slice(0, static_cast<size_t>(rows)), at::kLong);
      } else if (own.changed.defined() && codes_.count(value) > 0) {
        codes_[value].add_(own.changed.to(at::kLong), static_cast<int64_t>(uint64_t{1} << bit));
      }
    }
  }
  chooses_ = !choices.empty();
  if (!any) why_not_ = "the data of the examples do not differ";
}

const at::Tensor* RowExamples::codes_of(ValueId value, std::string* why) const {
  const auto found = codes_.find(value);
  if (found != codes_.end()) return &found->second;
  *why = why_not_.empty() ? "it has no part in the loss that the tape of the step knows" : why_not_;
  return nullptr;
}

RowExamples::Place RowExamples::read(const std::vector<uint64_t>& codes, int64_t dim) const {
  Place place;
  at::Tensor labels = at::full({static_cast<int64_t>(codes.size())}, rows::kNoExample, at::kLong);
  const int half = ones(code_of_[0]);
  bool any = false;
  for (size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] == 0) continue;
    const auto found = example_of_.find(codes[i]);
    if (found == example_of_.end()) {
      place.layout = rows::lost(
          examples_, ones(codes[i]) > half
                         ? "the examples are coupled: rows depend on the data of several of them"
                         : "exchanging data of the examples shows in parts of its rows only");
      return place;
    }
    labels.data_ptr<int64_t>()[i] = found->second;
    any = true;
  }
  if (!any) {
    place.layout = rows::lost(examples_, "no example's data show in it");
    return place;
  }
  place.layout = rows::labelled(dim, examples_, labels);
  return place;
}

RowExamples::Place RowExamples::along(ValueId value, int64_t dim) const {
  Place place;
  std::string why;
  const at::Tensor* codes = codes_of(value, &why);
  if (codes == nullptr || dim >= codes->dim()) {
    place.layout = rows::lost(examples_, codes == nullptr ? why : "its features are the examples'");
    return place;
  }
  const at::Tensor by = codes->movedim(dim, 0).reshape({codes->size(dim), -1}).contiguous();
  std::vector<uint64_t> all(static_cast<size_t>(by.size(0)));
  const int64_t* code = by.data_ptr<int64_t>();
  for (uint64_t& each : all) {
    for (int64_t i = 0; i < by.size(1); ++i) each |= static_cast<uint64_t>(*code++);
  }
  return read(all, dim);
}

RowExamples::Place RowExamples::place(ValueId value) const {
  Place place;
  std::string why;
  const at::Tensor* codes = codes_of(value, &why);
  if (codes == nullptr) {
    place.layout = rows::lost(examples_, why);
    return place;
  }
  for (int64_t dim = 0; dim < codes->dim(); ++dim) {
    place = along(value, dim);
    if (place.layout.has_rows()) return place;
  }
  const at::Tensor flat = codes->reshape({-1}).contiguous();
  std::vector<uint64_t> all(static_cast<size_t>(flat.numel()));
  std::copy_n(flat.data_ptr<int64_t>(), flat.numel(), all.begin());
  place = read(all, 0);
  place.flat = place.layout.has_rows();
  return place;
}

}  // namespace tycho::tape
