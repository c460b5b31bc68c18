#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tycho/trace/status.h"

namespace tycho::analyzer::command {

/// Where a command writes: standard output, or a file that appears when it is whole. Until
/// commit() a file that stands there already is as it was, and where the command fails it stays so.
/// What is no regular file (a device, a pipe) is written to directly and never removed.
class Output {
 public:
  /// `path` empty or "-": standard output. `runs`: what is read; an output that is part of it, or
  /// that is a trace, is refused, as is one that may not be written.
  static Result<std::unique_ptr<Output>> open(const std::string& path,
                                              const std::vector<std::string>& runs);
  ~Output();  // Without commit() nothing is left behind.
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  std::FILE* stream() { return stream_; }
  Status commit();

 private:
  Output() = default;
  Status open_file(const std::string& path, const std::vector<std::string>& runs);
  Status open_beside(const std::string& target, unsigned int mode);
  Status failure(int error) const;

  std::FILE* stream_ = nullptr;
  bool owned_ = false;
  std::string shown_ = "the output";  ///< for messages
  std::string target_;                ///< empty: written in place
  std::string temporary_;
};

/// Writes all of `text` to an Output.
Status write_output(const std::string& path, const std::vector<std::string>& runs,
                    const std::string& text);

}  // namespace tycho::analyzer::command
