#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

// The subset of MCAP that Tycho uses, and its two private records (docs/format.md 2 and 3).
namespace tycho::trace::mcap {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "MCAP is little-endian; byte swapping is not provided");

inline constexpr std::string_view kMagic{"\x89MCAP0\r\n", 8};
inline constexpr std::string_view kProfile = "tycho/1";
inline constexpr uint64_t kRecordHeaderBytes = 9;

enum class Opcode : uint8_t {
  kHeader = 0x01,
  kFooter = 0x02,
  kSchema = 0x03,
  kChannel = 0x04,
  kMessage = 0x05,
  kChunk = 0x06,
  kMessageIndex = 0x07,
  kChunkIndex = 0x08,
  kAttachment = 0x09,
  kAttachmentIndex = 0x0A,
  kStatistics = 0x0B,
  kMetadata = 0x0C,
  kMetadataIndex = 0x0D,
  kSummaryOffset = 0x0E,
  kDataEnd = 0x0F,
  kSeal = 0x80,
  kStepIndex = 0x81,
};

/// Found by searching when record lengths cannot be trusted. Random; never changes within format 1.
inline constexpr std::string_view kSealMagic{
    "\xd3\x1e\x54\x79\x63\x68\x6f\x0b\x9a\xc7\x42\xf0\x8d\x15\xbe\x66", 16};
inline constexpr uint16_t kFormatMinor = 0;

/// Limits that keep a hostile file from taking memory and time: larger values are treated as
/// damage. What is stored is bounded by the file; these bound what comes out of it.
inline constexpr uint64_t kMaxChunkBytes = uint64_t{1} << 30;
inline constexpr uint64_t kMaxAttachmentBytes = uint64_t{1} << 28;
inline constexpr uint64_t kMaxChannels = 4096;
inline constexpr uint64_t kMaxSealBytes = 70 + 10 * kMaxChannels;
inline constexpr uint64_t kMaxTopicBytes = 4096;
/// A chunk may decompress to so many times its stored size, or to kFreeChunkBytes.
inline constexpr uint64_t kMaxChunkRatio = 64;
inline constexpr uint64_t kFreeChunkBytes = uint64_t{4} << 20;
/// All chunks of a segment together: so many times the segment, and kFreeSegmentBytes.
inline constexpr uint64_t kMaxSegmentRatio = 256;
inline constexpr uint64_t kFreeSegmentBytes = uint64_t{256} << 20;
/// Each message has 16 bytes of its own in a message index, but for those of a torn tail.
inline constexpr uint64_t kIndexEntryBytes = 16;
inline constexpr uint64_t kFreeMessages = uint64_t{1} << 16;

/// Whether a chunk of `stored` bytes may hold `uncompressed` bytes.
inline bool is_plausible_chunk(uint64_t uncompressed, uint64_t stored) {
  return uncompressed <= kMaxChunkBytes &&
         (uncompressed <= kFreeChunkBytes || uncompressed / kMaxChunkRatio <= stored);
}

/// Private record 0x80, after a chunk and its message indexes.
struct Seal {
  uint16_t minor = kFormatMinor;
  uint64_t chunk_offset = 0;
  uint64_t chunk_length = 0;  ///< the whole record, its nine header bytes included
  uint32_t chunk_crc = 0;     ///< of the record as stored
  int64_t first_step = 0;
  int64_t last_step = 0;                        ///< first_step > last_step: the chunk holds no step
  uint64_t previous_seal = 0;                   ///< offset; 0: this is the first
  std::map<uint16_t, uint64_t> message_counts;  ///< per channel, since the beginning of the segment
};

/// Appends values to a byte string.
class Encoder {
 public:
  explicit Encoder(std::string* out) : out_(out) {}
  template <typename T>
  void number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    out_->append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void bytes(std::string_view value) { out_->append(value); }
  void text(std::string_view value) {
    number(static_cast<uint32_t>(value.size()));
    bytes(value);
  }
  void text_map(const std::map<std::string, std::string>& value);
  void count_map(const std::map<uint16_t, uint64_t>& value);

 private:
  std::string* out_;
};

/// Reads values; after the first failure `ok()` is false and every value is empty or zero.
class Decoder {
 public:
  explicit Decoder(std::string_view in) : in_(in) {}
  template <typename T>
  T number() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    const std::string_view raw = bytes(sizeof value);
    if (ok_) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  }
  std::string_view bytes(uint64_t size) {
    if (!ok_ || size > in_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view value = in_.substr(0, size);
    in_.remove_prefix(size);
    return value;
  }
  std::string_view text() { return bytes(number<uint32_t>()); }
  std::map<uint16_t, uint64_t> count_map();
  std::map<std::string, std::string> text_map();
  bool ok() const { return ok_; }
  std::string_view rest() const { return in_; }

 private:
  std::string_view in_;
  bool ok_ = true;
};

/// Appends a record: opcode, length, content.
void append_record(Opcode opcode, std::string_view content, std::string* out);
uint32_t crc32(std::string_view bytes, uint32_t seed = 0);
/// Whether `bytes` have this checksum. A fuzzer is spared from having to guess it.
bool has_crc32(std::string_view bytes, uint32_t expected);
/// The same of content that ends with its own checksum.
bool ends_with_its_crc32(std::string_view content);

std::string encode_seal(const Seal& seal);
/// False if the content is not an intact Seal: its magic and its own checksum are verified.
bool decode_seal(std::string_view content, Seal* seal);

}  // namespace tycho::trace::mcap
