#pragma once

#include <map>
#include <string>
#include <vector>

namespace tycho::analyzer {

struct FoundRuns {
  /// Directory of each run by the name under which it is served: its path below the directory that
  /// was asked for, which comes first where several were.
  std::map<std::string, std::string> directories;
  bool complete = true;  ///< false: there was more than is looked at
};

/// Runs (directories that hold segments) below these directories, at most four levels deep.
/// Symbolic links are not followed, a run with a segment that is one is left out: nothing outside
/// the directories can be reached through what is found. Hidden directories are left out.
FoundRuns find_runs(const std::vector<std::string>& roots);

}  // namespace tycho::analyzer
