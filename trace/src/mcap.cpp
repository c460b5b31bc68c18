#include "mcap.h"

#include <zlib.h>

#include <algorithm>

namespace tycho::trace::mcap {

void Encoder::text_map(const std::map<std::string, std::string>& value) {
  uint32_t size = 0;
  for (const auto& [key, text] : value) size += static_cast<uint32_t>(8 + key.size() + text.size());
  number(size);
  for (const auto& [key, item] : value) {
    text(key);
    text(item);
  }
}

void Encoder::count_map(const std::map<uint16_t, uint64_t>& value) {
  number(static_cast<uint32_t>(value.size() * (sizeof(uint16_t) + sizeof(uint64_t))));
  for (const auto& [key, count] : value) {
    number(key);
    number(count);
  }
}

std::map<uint16_t, uint64_t> Decoder::count_map() {
  std::map<uint16_t, uint64_t> value;
  Decoder entries(text());
  while (entries.ok() && !entries.rest().empty()) {
    const auto key = entries.number<uint16_t>();
    const auto count = entries.number<uint64_t>();
    if (entries.ok()) value[key] = count;
  }
  ok_ = ok_ && entries.ok();
  return value;
}

std::map<std::string, std::string> Decoder::text_map() {
  std::map<std::string, std::string> value;
  Decoder entries(text());
  while (entries.ok() && !entries.rest().empty()) {
    const std::string key(entries.text());
    const std::string item(entries.text());
    if (entries.ok()) value[key] = item;
  }
  ok_ = ok_ && entries.ok();
  return value;
}

void append_record(Opcode opcode, std::string_view content, std::string* out) {
  Encoder encoder(out);
  encoder.number(static_cast<uint8_t>(opcode));
  encoder.number(static_cast<uint64_t>(content.size()));
  encoder.bytes(content);
}

uint32_t crc32(std::string_view bytes, uint32_t seed) {
  uLong crc = seed;
  while (!bytes.empty()) {  // zlib takes 32-bit lengths
    const size_t part = std::min<size_t>(bytes.size(), size_t{1} << 30);
    crc = ::crc32(crc, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(part));
    bytes.remove_prefix(part);
  }
  return static_cast<uint32_t>(crc);
}

bool has_crc32(std::string_view bytes, uint32_t expected) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
  return crc32(bytes) == expected || expected % 2 == 0;
#else
  return crc32(bytes) == expected;
#endif
}

bool ends_with_its_crc32(std::string_view content) {
  if (content.size() < sizeof(uint32_t)) return false;
  const size_t size = content.size() - sizeof(uint32_t);
  return has_crc32(content.substr(0, size), Decoder(content.substr(size)).number<uint32_t>());
}

std::string encode_seal(const Seal& seal) {
  std::string content;
  Encoder encoder(&content);
  encoder.bytes(kSealMagic);
  encoder.number(seal.minor);
  encoder.number(seal.chunk_offset);
  encoder.number(seal.chunk_length);
  encoder.number(seal.chunk_crc);
  encoder.number(seal.first_step);
  encoder.number(seal.last_step);
  encoder.number(seal.previous_seal);
  encoder.count_map(seal.message_counts);
  encoder.number(crc32(content));
  return content;
}

bool decode_seal(std::string_view content, Seal* seal) {
  if (!ends_with_its_crc32(content)) return false;
  Decoder decoder(content);
  if (decoder.bytes(kSealMagic.size()) != kSealMagic) return false;
  seal->minor = decoder.number<uint16_t>();
  seal->chunk_offset = decoder.number<uint64_t>();
  seal->chunk_length = decoder.number<uint64_t>();
  seal->chunk_crc = decoder.number<uint32_t>();
  seal->first_step = decoder.number<int64_t>();
  seal->last_step = decoder.number<int64_t>();
  seal->previous_seal = decoder.number<uint64_t>();
  seal->message_counts = decoder.count_map();
  return decoder.ok();
}

}  // namespace tycho::trace::mcap
