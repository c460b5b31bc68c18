#pragma once

#include <optional>
#include <string>
#include <utility>

namespace tycho {

/// Outcome of an operation that can fail for reasons outside the program: a file, a disk, a format.
class [[nodiscard]] Status {
 public:
  enum class Code {
    kOk,
    kNotFound,         ///< no such file or directory
    kNotATrace,        ///< the bytes are not a Tycho trace, or a newer major version of it
    kCorrupt,          ///< the bytes contradict the format
    kNoSpace,          ///< the disk or quota is full
    kIoError,          ///< any other failure of the operating system
    kInvalidArgument,  ///< the caller asked for something impossible
  };

  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  /// Human-readable: what is wrong and where (path, byte, step). Empty when ok.
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

/// A value, or the reason why there is none. `value()` of a failed result is a programmer error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace tycho
