#include "find_runs.h"

#include <filesystem>
#include <set>

#include "tycho/trace/file_system.h"

namespace tycho::analyzer {
namespace {

namespace fs = std::filesystem;

constexpr int kDeepest = 4;
constexpr size_t kMostEntries = 200000;
constexpr size_t kMostRuns = 10000;

class Search {
 public:
  explicit Search(FoundRuns* found) : found_(found) {}

  void look(const std::string& directory, const std::string& name, int depth) {
    if (entries_ > kMostEntries || found_->directories.size() >= kMostRuns) {
      found_->complete = false;
      return;
    }
    const auto listed = trace::list_directory(directory);
    if (!listed.ok()) return;
    entries_ += listed.value().size();
    const auto segments = trace::list_segments(directory);
    if (segments.ok() && !segments.value().empty()) {
      for (const std::string& segment : segments.value()) {
        std::error_code error;
        if (fs::is_symlink(fs::symlink_status(fs::path(directory) / segment, error))) return;
      }
      found_->directories.emplace(name, directory);
      return;
    }
    if (depth == kDeepest) return;
    const std::set<std::string> sorted(listed.value().begin(), listed.value().end());
    for (const std::string& entry : sorted) {
      if (entry.front() == '.') continue;
      const fs::path path = fs::path(directory) / entry;
      std::error_code error;
      // Of the entry itself, not of what it points to.
      if (!fs::is_directory(fs::symlink_status(path, error))) continue;
      look(path.string(), name.empty() ? entry : name + "/" + entry, depth + 1);
    }
  }

 private:
  FoundRuns* found_;
  size_t entries_ = 0;
};

}  // namespace

FoundRuns find_runs(const std::vector<std::string>& roots) {
  FoundRuns found;
  Search search(&found);
  std::set<std::string> used;
  for (const std::string& root : roots) {
    std::error_code error;
    const fs::path real = fs::canonical(root, error);
    if (error) continue;
    std::string base = real.filename().string();
    if (base.empty()) base = "root";
    const auto segments = trace::list_segments(real.string());
    const bool is_run = segments.ok() && !segments.value().empty();
    if (roots.size() == 1 && !is_run) {
      search.look(real.string(), "", 0);
      continue;
    }
    std::string name = base;
    for (int i = 2; !used.insert(name).second; ++i) name = base + "~" + std::to_string(i);
    search.look(real.string(), name, 0);
  }
  return found;
}

}  // namespace tycho::analyzer
