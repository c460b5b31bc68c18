#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tycho::testing {

/// One Event of a TensorBoard event file.
struct EventEntry {
  double wall_time = 0;
  int64_t step = 0;
  std::string file_version;
  std::string tag;
  float value = 0;
  bool has_value = false;
};

/// Reads an event file strictly and shares no code with its writer: framing, both checksums, known
/// field numbers with their wire types and nothing else. Throws std::runtime_error at the first
/// deviation.
std::vector<EventEntry> read_event_file(const std::string& bytes);

/// CRC-32C, bit by bit.
uint32_t crc32c(const std::string& bytes);

}  // namespace tycho::testing
