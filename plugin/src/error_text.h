#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <string>

namespace tycho {

/// What an exception says. LibTorch's carry a stack trace, which nobody wants in a notice.
inline std::string error_text(const std::exception& error) {
  const auto* own = dynamic_cast<const c10::Error*>(&error);
  return own == nullptr ? error.what() : own->what_without_backtrace();
}

/// Its first line: LibTorch appends where in its sources it happened.
inline std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

}  // namespace tycho
