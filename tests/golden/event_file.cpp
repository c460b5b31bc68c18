#include "tests/golden/event_file.h"

#include <cstring>
#include <stdexcept>

namespace tycho::testing {
namespace {

class Cursor {
 public:
  explicit Cursor(const std::string& bytes) : bytes_(bytes) {}

  bool done() const { return at_ == bytes_.size(); }
  std::string take(uint64_t size) {
    if (size > bytes_.size() - at_) throw std::runtime_error("cut off");
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  uint64_t fixed(int size) {
    const std::string raw = take(static_cast<uint64_t>(size));
    uint64_t value = 0;
    for (int i = size - 1; i >= 0; --i) {
      value = value << 8 | static_cast<uint8_t>(raw[static_cast<size_t>(i)]);
    }
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint64_t byte = fixed(1);
      value |= (byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    throw std::runtime_error("varint too long");
  }
  std::string text() { return take(varint()); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

void check(const std::string& bytes, uint64_t masked) {
  const uint32_t rotated = static_cast<uint32_t>(masked) - 0xa282ead8u;
  const uint32_t stored = rotated >> 17 | rotated << 15;
  if (stored != crc32c(bytes)) throw std::runtime_error("wrong checksum");
}

void read_value(const std::string& bytes, EventEntry* entry) {
  Cursor cursor(bytes);
  while (!cursor.done()) {
    const uint64_t key = cursor.varint();
    if (key == (1 << 3 | 2)) {
      entry->tag = cursor.text();
    } else if (key == (2 << 3 | 5)) {
      const auto bits = static_cast<uint32_t>(cursor.fixed(4));
      std::memcpy(&entry->value, &bits, sizeof bits);
      entry->has_value = true;
    } else {
      throw std::runtime_error("unknown field in Value");
    }
  }
}

void read_summary(const std::string& bytes, EventEntry* entry) {
  Cursor cursor(bytes);
  int values = 0;
  while (!cursor.done()) {
    if (cursor.varint() != (1 << 3 | 2)) throw std::runtime_error("unknown field in Summary");
    if (++values > 1) throw std::runtime_error("several values in a Summary");
    const std::string value = cursor.text();
    read_value(value, entry);
  }
}

EventEntry read_event(const std::string& bytes) {
  EventEntry entry;
  Cursor cursor(bytes);
  while (!cursor.done()) {
    const uint64_t key = cursor.varint();
    if (key == (1 << 3 | 1)) {
      const uint64_t bits = cursor.fixed(8);
      std::memcpy(&entry.wall_time, &bits, sizeof bits);
    } else if (key == (2 << 3 | 0)) {
      entry.step = static_cast<int64_t>(cursor.varint());
    } else if (key == (3 << 3 | 2)) {
      entry.file_version = cursor.text();
    } else if (key == (5 << 3 | 2)) {
      const std::string summary = cursor.text();
      read_summary(summary, &entry);
    } else {
      throw std::runtime_error("unknown field in Event");
    }
  }
  return entry;
}

}  // namespace

uint32_t crc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

std::vector<EventEntry> read_event_file(const std::string& bytes) {
  std::vector<EventEntry> entries;
  Cursor cursor(bytes);
  while (!cursor.done()) {
    const std::string length = cursor.take(8);
    check(length, cursor.fixed(4));
    const std::string data = cursor.take(Cursor(length).fixed(8));
    check(data, cursor.fixed(4));
    entries.push_back(read_event(data));
  }
  return entries;
}

}  // namespace tycho::testing
