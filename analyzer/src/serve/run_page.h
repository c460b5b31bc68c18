#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/report/report.h"

namespace tycho::analyzer {

/// The report of a run as a page, in the parts in which it is brought up to date. Never changed
/// once it is made.
struct RunPage {
  uint64_t version = 0;
  std::string html;                ///< the offline report
  std::vector<std::string> parts;  ///< the elements of its <main>, in order
  nlohmann::json view;             ///< what its charts are drawn from
  std::string json;                ///< the report for programs
};

RunPage make_page(const Report& report);

/// The elements of <main> of a report: each section, the header and the details at the end.
std::vector<std::string> split_main(const std::string& html);

/// What turns a page that shows `before` into one that shows `after`: parts that differ, by
/// position (`parts`, of `count`; all, where there are more or fewer), and of each series what was
/// appended to it (`view`; everything as `data`, where there are other series or layers). `before`
/// nullptr: everything. Null where nothing differs.
nlohmann::json page_changes(const RunPage* before, const RunPage& after);

}  // namespace tycho::analyzer
