#include "data/text.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace tycho::examples {
namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + ": cannot be opened");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string read_repository() {
  const std::filesystem::path root = TYCHO_SOURCE_DIRECTORY;
  std::vector<std::filesystem::path> paths;
  for (const char* folder :
       {"docs", "proto", "trace", "probes", "plugin", "analyzer", "examples"}) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".md" || extension == ".h" || extension == ".cpp" || extension == ".proto") {
        paths.push_back(entry.path());
      }
    }
  }
  std::sort(paths.begin(), paths.end());  // the order of a directory listing is the file system's
  std::string text;
  for (const auto& path : paths) text += read_file(path);
  if (text.empty())
    throw std::runtime_error("no source of Tycho in " + root.string() + "; use --data FILE");
  return text;
}

}  // namespace

Text load_text(const std::string& path) {
  const std::string bytes = path.empty() ? read_repository() : read_file(path);
  std::array<int64_t, 256> index{};
  for (const char c : bytes) index[static_cast<uint8_t>(c)] = 1;
  Text text;
  for (size_t byte = 0; byte < index.size(); ++byte) {
    if (index[byte] == 0) continue;
    index[byte] = static_cast<int64_t>(text.alphabet.size());
    text.alphabet.push_back(static_cast<char>(byte));
  }
  text.symbols.reserve(bytes.size());
  for (const char c : bytes) text.symbols.push_back(index[static_cast<uint8_t>(c)]);
  return text;
}

}  // namespace tycho::examples
