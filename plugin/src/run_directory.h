#pragma once

#include <string>

#include "tycho/session_options.h"

namespace tycho {

/// The directory that a session writes to, and the claim on it: of sessions that are launched at
/// the same time, in one process or several, each gets another one. The claim is a lock that ends
/// with the object, or with the process whatever ends it.
class RunDirectory {
 public:
  /// The directory of the options where it is free. Where it holds a run, or is claimed: with
  /// resume() the same (OptionError if it is claimed), with exclusive() an OptionError, else the
  /// first free one of DIRECTORY-2, DIRECTORY-3, ... Creates it and tries to write in it;
  /// OptionError where that fails.
  explicit RunDirectory(const SessionOptions& options);
  ~RunDirectory() { release(); }
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  /// Not empty: why it is not the one that was asked for.
  const std::string& moved() const { return moved_; }
  /// Ends the claim.
  void release();
  /// In a forked process: forgets the claim, which stays its parent's.
  void abandon();

 private:
  bool claim(const std::string& directory);

  std::string path_;
  std::string moved_;
  int lock_ = -1;
};

}  // namespace tycho
