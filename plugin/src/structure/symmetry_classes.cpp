#include "structure/symmetry_classes.h"

#include <numeric>

namespace tycho::structure {

int SymmetryClasses::make(int64_t channels) {
  const int id = static_cast<int>(nodes_.size());
  nodes_.push_back({id, 1});
  SymmetryClass made;
  made.channels = channels;
  made.block = channels;
  classes_.push_back(std::move(made));
  return id;
}

SymmetryClasses::Found SymmetryClasses::find(int id) const {
  int sign = 1;
  while (nodes_[static_cast<size_t>(id)].parent != id) {
    sign *= nodes_[static_cast<size_t>(id)].sign;
    id = nodes_[static_cast<size_t>(id)].parent;
  }
  return {id, sign};
}

void SymmetryClasses::mark(int id, bool scale, bool shift) {
  SymmetryClass& found = classes_[static_cast<size_t>(find(id).root)];
  found.scale_broken = found.scale_broken || scale;
  found.shift_broken = found.shift_broken || shift;
  for (const int piece : found.pieces) mark(piece, scale, shift);
}

// Something that is done with the whole after it was split concerns pieces in a way that is not
// followed.
SymmetryClass& SymmetryClasses::change(int id) {
  SymmetryClass& found = classes_[static_cast<size_t>(find(id).root)];
  if (!found.pieces.empty()) mark(id, true, true);
  return found;
}

void SymmetryClasses::break_scale(int id) { mark(id, true, false); }
void SymmetryClasses::break_shift(int id) { mark(id, false, true); }
void SymmetryClasses::break_all(int id) { mark(id, true, true); }

void SymmetryClasses::mix_within(int id, int64_t block) {
  SymmetryClass& found = change(id);
  found.block = std::gcd(found.block, block);
}

void SymmetryClasses::only_uniform(int id) {
  change(id).uniform = true;
  mix_within(id, 1);
}

void SymmetryClasses::join(int a, int sign_a, int b, int sign_b) {
  const Found first = find(a);
  const Found second = find(b);
  const int sign = sign_a * first.sign * sign_b * second.sign;
  if (first.root == second.root) {
    if (sign < 0) break_all(first.root);
    return;
  }
  SymmetryClass& kept = classes_[static_cast<size_t>(first.root)];
  const SymmetryClass gone = classes_[static_cast<size_t>(second.root)];
  if (kept.channels != gone.channels) {
    break_all(first.root);
    break_all(second.root);
    return;
  }
  nodes_[static_cast<size_t>(second.root)] = {first.root, sign};
  kept.block = std::gcd(kept.block, gone.block);
  kept.uniform = kept.uniform || gone.uniform;
  kept.shift_seen = kept.shift_seen || gone.shift_seen;
  kept.normalized = kept.normalized || gone.normalized;
  kept.product = kept.product || gone.product;
  kept.attention = kept.attention || gone.attention;
  const bool touched = kept.block < kept.channels || kept.uniform || kept.shift_seen;
  bool broken = false;
  if (!kept.pieces.empty() && !gone.pieces.empty()) {
    broken = kept.pieces.size() != gone.pieces.size() || sign < 0;
    const std::vector<int> pieces = kept.pieces;
    for (size_t i = 0; !broken && i < pieces.size(); ++i) join(pieces[i], 1, gone.pieces[i], 1);
    if (broken) {
      for (const int piece : gone.pieces) break_all(piece);
    }
  } else if (!kept.pieces.empty() || !gone.pieces.empty()) {
    if (kept.pieces.empty()) kept.pieces = gone.pieces;
    broken = touched || sign < 0;
  }
  mark(first.root, gone.scale_broken || broken, gone.shift_broken || broken);
  mark(first.root, kept.scale_broken, kept.shift_broken);
}

std::vector<int> SymmetryClasses::split(int id, int64_t count) {
  const Found whole = find(id);
  const SymmetryClass found = classes_[static_cast<size_t>(whole.root)];
  if (!found.pieces.empty()) {
    if (static_cast<int64_t>(found.pieces.size()) == count) return found.pieces;
    break_all(id);
    return {};
  }
  if (whole.sign < 0 || found.block < found.channels || found.uniform || found.shift_seen ||
      found.channels % count != 0) {
    break_all(id);
    return {};
  }
  std::vector<int> pieces;
  for (int64_t i = 0; i < count; ++i) pieces.push_back(make(found.channels / count));
  classes_[static_cast<size_t>(whole.root)].pieces = pieces;
  mark(whole.root, found.scale_broken, found.shift_broken);
  return pieces;
}

}  // namespace tycho::structure
