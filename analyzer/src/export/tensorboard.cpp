#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <array>
#include <cstring>

#include "value_stream.h"

// TensorBoard reads files of TFRecords: length u64, masked CRC-32C of the length, data, masked
// CRC-32C of the data. Data are Event messages: 1 wall_time double, 2 step int64, 3 file_version
// string, 5 summary; Summary: 1 repeated value; Value: 1 tag string, 2 simple_value float.
namespace tycho::analyzer {
namespace {

// No package of Debian 12 offers CRC-32C for C++.
uint32_t masked_crc32c(const std::string& bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
      entries[i] = crc;
    }
    return entries;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<uint8_t>(c)) & 0xFF];
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

template <typename T>
std::string little_endian(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

constexpr uint32_t tag(uint32_t field, uint32_t wire_type) { return field << 3 | wire_type; }

class Message {
 public:
  Message& varint(uint32_t field, uint64_t value) {
    return put(tag(field, 0), [&](auto* s) { s->WriteVarint64(value); });
  }
  Message& bytes(uint32_t field, const std::string& value) {
    return put(tag(field, 2), [&](auto* s) {
      s->WriteVarint32(static_cast<uint32_t>(value.size()));
      s->WriteString(value);
    });
  }
  Message& real(uint32_t field, double value) {
    return put(tag(field, 1), [&](auto* s) { s->WriteString(little_endian(value)); });
  }
  Message& single(uint32_t field, float value) {
    return put(tag(field, 5), [&](auto* s) { s->WriteString(little_endian(value)); });
  }
  const std::string& text() const { return text_; }

 private:
  template <typename Write>
  Message& put(uint32_t field_tag, Write write) {
    google::protobuf::io::StringOutputStream sink(&text_);
    google::protobuf::io::CodedOutputStream stream(&sink);
    stream.WriteTag(field_tag);
    write(&stream);
    return *this;
  }
  std::string text_;
};

bool write_record(const std::string& data, std::FILE* out) {
  const std::string length = little_endian(static_cast<uint64_t>(data.size()));
  const std::string record =
      length + little_endian(masked_crc32c(length)) + data + little_endian(masked_crc32c(data));
  return std::fwrite(record.data(), 1, record.size(), out) == record.size();
}

}  // namespace

Result<ExportOutcome> export_tensorboard(const std::string& run, std::FILE* out) {
  bool written = true;
  bool first = true;
  auto outcome = for_each_value(run, [&](const Value& value) {
    const double wall_time = static_cast<double>(value.time_ns) * 1e-9;
    if (first) {
      first = false;
      written = write_record(Message().real(1, wall_time).bytes(3, "brain.Event:2").text(), out);
    }
    const std::string entry = Message()
                                  .bytes(1, *value.statistic + "/" + *value.scope)
                                  .single(2, static_cast<float>(value.value))
                                  .text();
    const std::string event = Message()
                                  .real(1, wall_time)
                                  .varint(2, static_cast<uint64_t>(value.step))
                                  .bytes(5, Message().bytes(1, entry).text())
                                  .text();
    written = written && write_record(event, out);
    return written;
  });
  if (outcome.ok() && (!written || std::fflush(out) != 0)) return write_failure();
  return outcome;
}

}  // namespace tycho::analyzer
