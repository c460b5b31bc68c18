#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/follow/followed_run.h"

namespace tycho::analyzer {

/// What a list of runs shows of one. Never changed once it is made, so that threads can share it.
struct RunCard {
  std::string name;   ///< by which the server knows it: the path below the directory that is served
  std::string title;  ///< chosen by the user; may be empty
  std::string optimizer;
  int64_t start_time_ns = 0;
  trace::RunState state = trace::RunState::kWaiting;
  std::string why;
  bool is_read = false;  ///< false: what follows is not known yet
  int64_t step = -1;
  double steps_per_second = kUnknown;
  bool has_loss = false;  ///< `loss` was observed, whatever it is
  double loss = kUnknown;
  double lowest_loss = kUnknown;
  double cost = kUnknown;  ///< Tycho's share of the time of training
  int64_t last_time_ns = 0;
  std::vector<std::pair<std::string, Verdict>> laws;  ///< one verdict a law, in the report's order
  std::vector<Remark> remarks;
  uint64_t version = 0;  ///< of the catalog when this was new

  int count(Verdict verdict) const;
  int count(Severity severity) const;
};

/// What is known of a run that was read; `name` and `version` are left to the caller.
RunCard make_card(const FollowedRun& run);
/// What can be known without reading its steps: name, optimizer, start and state.
RunCard glance(const std::string& directory);

/// Whether two cards show the same, whatever their versions are.
bool looks_the_same(const RunCard& a, const RunCard& b);
/// For the list of runs and for programs.
nlohmann::json card_json(const RunCard& card);

}  // namespace tycho::analyzer
