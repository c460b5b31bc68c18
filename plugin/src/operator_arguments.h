#pragma once

#include <ATen/core/ivalue.h>

namespace tycho {

/// Whether an operator's argument is the number 1, as alpha and beta of additions usually are.
inline bool is_one(const c10::IValue& value) {
  return value.isScalar() && value.toScalar().toDouble() == 1.0;
}

}  // namespace tycho
