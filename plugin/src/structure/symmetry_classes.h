#pragma once

#include <cstdint>
#include <vector>

namespace tycho::structure {

/// What is known of the channels that must be transformed together: the loss does not change when
/// channel i of everything with sign +1 is multiplied by a_i and of everything with sign -1 divided
/// by it.
struct SymmetryClass {
  int64_t channels = 0;
  /// Channels may be mixed linearly, not only scaled, within blocks of so many: linear maps follow
  /// each other without an elementwise operator between.
  int64_t block = 1;
  bool uniform = false;       ///< all channels by the same factor only (LayerNorm)
  bool scale_broken = false;  ///< something is not homogeneous
  bool shift_broken = false;  ///< something changes when a number is added to all channels
  bool shift_seen = false;    ///< something does not (softmax, LayerNorm)
  bool normalized = false;    ///< a normalisation reads it
  bool product = false;       ///< queries with keys
  bool attention = false;     ///< values
  std::vector<int> pieces;    ///< classes of equal parts of the channels: the whole is not used
};

/// Classes of channels, joined as operators are seen (union-find with signs). Whatever is not
/// understood breaks a class: a symmetry is claimed only where all operators are known.
class SymmetryClasses {
 public:
  int make(int64_t channels);
  struct Found {
    int root;
    int sign;
  };
  Found find(int id) const;
  const SymmetryClass& at(int id) const { return classes_[static_cast<size_t>(find(id).root)]; }

  /// sign_a * a and sign_b * b are scaled by the same factors.
  void join(int a, int sign_a, int b, int sign_b);
  void break_scale(int id);
  void break_shift(int id);
  void break_all(int id);
  void mix_within(int id, int64_t block);
  void only_uniform(int id);
  void see_shift(int id) { change(id).shift_seen = true; }
  void see_norm(int id) { change(id).normalized = true; }
  void see_product(int id) { change(id).product = true; }
  void see_attention(int id) { change(id).attention = true; }
  /// Classes of `count` equal pieces of the channels; empty where the whole was used already.
  std::vector<int> split(int id, int64_t count);

 private:
  struct Node {
    int parent;
    int sign;
  };
  SymmetryClass& change(int id);
  void mark(int root, bool scale, bool shift);
  std::vector<Node> nodes_;
  std::vector<SymmetryClass> classes_;
};

}  // namespace tycho::structure
