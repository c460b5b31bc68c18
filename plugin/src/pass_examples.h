#pragma once

#include <cstdint>
#include <vector>

namespace tycho {

/// How many examples each backward pass of a step holds that none of the others holds. Backward
/// passes are microbatches if each goes over a forward pass of its own; losses that share a forward
/// pass, and passes of which nothing was seen, are not. What the user says of the step has to agree
/// with the sum: two losses of one batch, each with a forward pass, give twice as many.
class PassExamples {
 public:
  explicit PassExamples(size_t parameters) : parameters_(parameters) {}

  void start_step();
  /// An operator used a parameter: a forward pass runs.
  void forward() { forward_ = true; }
  /// In backward: what is differentiated was differentiated before.
  void repeated();
  /// A parameter's gradient was accumulated. `used`: an operator was seen to use it since the last
  /// one. `examples`: of the forward pass; 0: unknown. `first`: of the passes that count.
  void delivered(uint32_t parameter, bool used, int64_t examples, bool counts, bool first);
  /// Of the passes that make up a parameter's gradient; empty where one of them is not known, or
  /// where they are not `batch_size` together (0: whatever they are).
  std::vector<int64_t> sizes(uint32_t parameter, int64_t batch_size) const;

 private:
  struct Pass {
    int64_t examples = 0;
    bool seen = false;      // a forward pass of its own
    bool repeated = false;  // not of its own
  };
  struct Parameter {
    size_t last_pass = 0;  // counted from 1
    std::vector<size_t> passes;
  };

  std::vector<Parameter> parameters_;
  std::vector<Pass> passes_;
  bool forward_ = true;  // since the last pass
  bool repeated_ = false;
};

}  // namespace tycho
