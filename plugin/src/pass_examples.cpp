#include "pass_examples.h"

#include <numeric>

namespace tycho {

void PassExamples::start_step() {
  passes_.clear();
  forward_ = true;
  repeated_ = false;
  for (Parameter& parameter : parameters_) parameter = Parameter();
}

// Gradients of outputs come before those of the parameters in front of them.
void PassExamples::repeated() {
  repeated_ = true;
  if (!passes_.empty() && !forward_) passes_.back().repeated = true;
}

void PassExamples::delivered(uint32_t id, bool used, int64_t examples, bool counts, bool first) {
  Parameter& parameter = parameters_[id];
  // A pass brings each parameter one gradient.
  if (passes_.empty() || forward_ || parameter.last_pass == passes_.size()) {
    passes_.emplace_back();
    forward_ = false;
  }
  Pass& pass = passes_.back();
  pass.repeated = pass.repeated || repeated_;
  repeated_ = false;
  pass.seen = pass.seen || used;
  if (examples > 0) pass.examples = examples;
  parameter.last_pass = passes_.size();
  if (first) parameter.passes.clear();
  if (counts) parameter.passes.push_back(passes_.size() - 1);
}

std::vector<int64_t> PassExamples::sizes(uint32_t id, int64_t batch_size) const {
  std::vector<int64_t> sizes;
  for (const size_t index : parameters_[id].passes) {
    const Pass& pass = passes_[index];
    if (!pass.seen || pass.repeated || pass.examples == 0) return {};
    sizes.push_back(pass.examples);
  }
  const int64_t all = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  if (batch_size > 0 && all != batch_size) return {};
  return sizes;
}

}  // namespace tycho
