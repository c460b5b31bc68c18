#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "rows/layout.h"
#include "tape/loss_tape.h"

namespace tycho::tape {

/// A constant of a tape that holds data of the examples.
struct RowSource {
  ValueId value = kNoValue;
  rows::Layout layout;  ///< Kind::kRows
};

/// Whether a constant of a tape may take other numbers without that operators take other rows:
/// floating point, and indices into tables of embeddings.
bool may_change(const LossTape& tape, ValueId value);

/// What a layer puts out, whose rows are asked for.
struct RowsWanted {
  ValueId value = kNoValue;
  int64_t features = 0;  ///< of its last dimensions, which belong together

  bool operator==(const RowsWanted& other) const {
    return value == other.value && features == other.features;
  }
};

/// Which example each row of a layer's output belongs to, established by experiment: the numbers of
/// some examples are exchanged for others of the batch, the tape is evaluated again with its
/// gradient, and what changes, in the output or in the loss's gradient by it, is theirs. Random
/// numbers are those of the step, and whatever is not floating point (masks, lengths, indices but
/// for those into tables of embeddings) stays as it was.
///
/// Each example is exchanged in half of the L evaluations, in other ones than any other example:
/// C(L, L/2) >= examples, so 8 evaluations for 64 examples, 10 for 128. A row that changes in more
/// than half of them depends on several examples (batch normalisation, contrastive losses). All
/// comparisons are bit for bit: what rounding alone changes is taken for a dependence, so that
/// nothing is established too much. Assumes that the exchanged data show wherever they have a part;
/// a row where they show in some of the evaluations only is not established.
class RowExamples {
 public:
  /// Where the examples lie in an output.
  struct Place {
    /// Kind::kRows with labels; rows that no example changes have kNoExample. Else `why`.
    rows::Layout layout;
    bool flat = false;  ///< of all dimensions before the features, as one
  };

  /// Costs L + 1 evaluations with gradients by `parameters`, and holds each wanted output twice:
  /// refused where that takes more than `memory` bytes. Sets generators, and running statistics are
  /// written to scratch copies of the tape. Does not throw but for memory.
  RowExamples(const LossTape& tape, const std::vector<RowSource>& sources,
              const std::vector<RowsWanted>& wanted, int64_t examples,
              const std::vector<at::Tensor>& parameters, int64_t memory);

  /// Not empty: nothing is established, and why.
  const std::string& why_not() const { return why_not_; }
  /// Along any dimension that does, the first of them, or along all before the features.
  Place place(ValueId value) const;
  /// Along this dimension.
  Place along(ValueId value, int64_t dim) const;
  /// Whether choices were made (indices, masks) that depend on parameters or data: another step may
  /// make others.
  bool chooses() const { return chooses_; }

 private:
  struct Seen;
  void experiment(const LossTape& tape, const std::vector<RowSource>& sources,
                  const std::vector<at::Tensor>& parameters, int64_t memory);
  /// The example that each of these codes means; rows with several: none, and why.
  Place read(const std::vector<uint64_t>& codes, int64_t dim) const;
  const at::Tensor* codes_of(ValueId value, std::string* why) const;

  int64_t examples_ = 0;
  std::vector<uint64_t> code_of_;                     // by example
  std::unordered_map<uint64_t, int64_t> example_of_;  // by code
  std::unordered_map<ValueId, int64_t> features_;
  std::unordered_map<ValueId, at::Tensor> codes_;  // int64, sizes without the features
  bool chooses_ = false;
  std::string why_not_;
};

}  // namespace tycho::tape
