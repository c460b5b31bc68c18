#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/compare/run_digest.h"

namespace tycho::analyzer {

/// What a setting of a run says about it.
enum class SettingKind {
  kTraining,    ///< changes what is trained: optimizer, batch size, architecture
  kLabel,       ///< named by the user: tags, arguments of the command line, the run's name
  kShape,       ///< extents of a parameter
  kSeed,        ///< tells replicates apart
  kInstrument,  ///< does not change the run: Tycho's options, versions, environment
};

/// The setting that is the run's name without its digits.
inline constexpr const char* kNameKey = "name (digits left out)";

struct Setting {
  std::string value;
  SettingKind kind = SettingKind::kTraining;
};

/// Everything that a trace says of how its run was set up, by a name for people. Arguments of the
/// command line that name files are left out.
std::map<std::string, Setting> settings_of(const RunDigest& run);

/// Is `text` wholly a finite number?
bool is_number(const std::string& text);

/// A module path or parameter name with its numbers replaced: "blocks.3.fc" is "blocks.#.fc".
std::string path_pattern(const std::string& path);

/// Names of parameters to their extents.
std::map<std::string, std::vector<int64_t>> shapes_of(const v1::ModelDescription& model);

}  // namespace tycho::analyzer
