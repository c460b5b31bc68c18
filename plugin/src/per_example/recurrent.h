#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "per_example/per_example.h"

namespace tycho::per_example {

/// One call of a recurrent layer (lstm, gru, rnn_tanh, rnn_relu, padded or packed) or of a cell.
struct Recurrence {
  enum class Cell { kLstm, kGru, kTanh, kRelu };
  Cell cell = Cell::kLstm;
  at::Tensor input;        ///< [T, N, F], [N, T, F], packed [rows, F], or of a cell [N, F]
  at::Tensor batch_sizes;  ///< int64 [T] of packed rows; undefined: every time has N rows
  at::Tensor h, c;         ///< states before the first time, [layers * directions, N, ...]
  /// For each layer and direction: w_ih, w_hh, then b_ih and b_hh with biases, then w_hr with a
  /// projection.
  std::vector<at::Tensor> weights;
  bool biases = true;
  int64_t layers = 1;
  int64_t directions = 1;
  bool batch_first = false;
  bool single = false;   ///< a cell: one time, and no output beside the states
  bool in_list = false;  ///< the weights are a list, not arguments one by one
  /// Of a cell: the gradient of c holds what comes to it through h, which is made of it.
  bool h_is_made_of_c = false;

  /// Which weight the argument at `position` (of a list: its element) is; nothing: none.
  std::optional<size_t> weight_at(size_t position, const at::Tensor& argument) const;
};

/// Reads the call. Nothing: not a recurrent operator. `why_not`: it is one, but the gradients of
/// its examples do not follow from inputs and outputs.
std::optional<Recurrence> recurrence(const std::string& name,
                                     c10::ArrayRef<const c10::IValue> inputs, std::string* why_not);

/// Contributions of all weights, from the gradients of output, h_n and c_n (undefined: none). The
/// layer runs once more over time, forwards and backwards: about what its own two passes cost, in
/// operators of single times. `wanted`: by weight. `batch.rows`: of the output of a layer, of h_n
/// of a cell.
std::vector<Contribution> contributions(const Recurrence& call,
                                        const std::array<at::Tensor, 3>& output_gradients,
                                        const Batch& batch, const std::vector<Wanted>& wanted);

}  // namespace tycho::per_example
