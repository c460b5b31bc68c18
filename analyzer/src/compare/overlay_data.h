#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "src/compare/comparison.h"

namespace tycho::analyzer {

/// The curves of the page of a comparison, as compare.js draws them, at most 600 000 points.
struct OverlayData {
  nlohmann::json data;
  std::vector<std::string> left_out;  ///< statistics of layers for which there was no room
};
OverlayData overlay_data(const Comparison& comparison);

}  // namespace tycho::analyzer
