#include "segment_reader.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>

namespace tycho::trace {
namespace {

using mcap::Decoder;
using mcap::Opcode;

constexpr uint64_t kSearchBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxSealBytes = uint64_t{1} << 20;

bool is_known(uint8_t opcode) { return (opcode >= 0x01 && opcode <= 0x0F) || opcode >= 0x80; }

bool decode_attachment(std::string_view content, std::string* name, std::string* data) {
  if (content.size() < sizeof(uint32_t)) return false;
  Decoder check(content.substr(content.size() - sizeof(uint32_t)));
  if (check.number<uint32_t>() != mcap::crc32(content.substr(0, content.size() - sizeof(uint32_t))))
    return false;
  Decoder decoder(content);
  decoder.number<uint64_t>();
  decoder.number<uint64_t>();
  *name = decoder.text();
  decoder.text();
  *data = decoder.bytes(decoder.number<uint64_t>());
  return decoder.ok();
}

}  // namespace

SegmentReader::SegmentReader(std::unique_ptr<ReadableFile> file, std::string path)
    : file_(std::move(file)), path_(std::move(path)), decompressor_(ZSTD_createDCtx()) {}

SegmentReader::~SegmentReader() { ZSTD_freeDCtx(decompressor_); }

Result<std::unique_ptr<SegmentReader>> SegmentReader::open(const std::string& path) {
  auto file = ReadableFile::open(path);
  if (!file.ok()) return file.status();
  std::unique_ptr<SegmentReader> reader(new SegmentReader(std::move(file).value(), path));
  const uint64_t size = reader->file_->size();
  if (size == 0) return Status(Status::Code::kNotATrace, fmt::format("{} is empty", path));
  std::string magic;
  const bool starts_well = size >= mcap::kMagic.size() &&
                           reader->file_->read(0, mcap::kMagic.size(), &magic).ok() &&
                           magic == mcap::kMagic;
  if (!starts_well) {
    mcap::Seal seal;
    uint64_t offset = 0;
    if (reader->find_seal(0, size, &seal, &offset) == 0) {
      return Status(
          Status::Code::kNotATrace,
          fmt::format("{} is not a Tycho trace: it does not start with MCAP's magic and holds no "
                      "intact chunk",
                      path));
    }
  } else {
    RecordHead head;
    std::string content;
    if (reader->read_head(mcap::kMagic.size(), &head) &&
        head.opcode == static_cast<uint8_t>(Opcode::kHeader) && head.length < 4096 &&
        reader->file_->read(mcap::kMagic.size() + mcap::kRecordHeaderBytes, head.length, &content)
            .ok()) {
      Decoder decoder(content);
      const std::string profile(decoder.text());
      if (decoder.ok() && profile != mcap::kProfile) {
        const bool newer = profile.rfind("tycho/", 0) == 0;
        return Status(
            Status::Code::kNotATrace,
            fmt::format(
                "{} {} (profile \"{}\" at byte {}; this program reads \"{}\")", path,
                newer ? "was written by a newer Tycho" : "is an MCAP file, but not a Tycho trace",
                profile.substr(0, 64), mcap::kMagic.size() + mcap::kRecordHeaderBytes,
                mcap::kProfile));
      }
    }
  }
  std::string tail;
  reader->sealed_ =
      size >= 2 * mcap::kMagic.size() &&
      reader->file_->read(size - mcap::kMagic.size(), mcap::kMagic.size(), &tail).ok() &&
      tail == mcap::kMagic;
  if (reader->sealed_) reader->load_step_index();
  return reader;
}

bool SegmentReader::read_head(uint64_t offset, RecordHead* head) const {
  std::string raw;
  if (!file_->read(offset, mcap::kRecordHeaderBytes, &raw).ok()) return false;
  Decoder decoder(raw);
  head->opcode = decoder.number<uint8_t>();
  head->length = decoder.number<uint64_t>();
  const uint64_t left = file_->size() - offset - mcap::kRecordHeaderBytes;
  return is_known(head->opcode) && head->length <= left;
}

// Returns the end of the first intact Seal record that begins at or after `from` and whose content
// begins before `until`; 0: there is none.
uint64_t SegmentReader::find_seal(uint64_t from, uint64_t until, mcap::Seal* seal,
                                  uint64_t* seal_offset) const {
  const uint64_t size = std::min(until + mcap::kSealMagic.size() - 1, file_->size());
  std::string window;
  std::string content;
  const uint64_t overlap = mcap::kSealMagic.size() - 1;
  for (uint64_t at = from; at < size;) {
    const uint64_t length = std::min(kSearchBytes, size - at);
    if (!file_->read(at, length, &window).ok()) return 0;
    for (size_t found = window.find(mcap::kSealMagic); found != std::string::npos;
         found = window.find(mcap::kSealMagic, found + 1)) {
      const uint64_t content_offset = at + found;
      if (content_offset < mcap::kRecordHeaderBytes) continue;
      RecordHead head;
      const uint64_t offset = content_offset - mcap::kRecordHeaderBytes;
      if (!read_head(offset, &head) || head.opcode != static_cast<uint8_t>(Opcode::kSeal) ||
          head.length > kMaxSealBytes || !file_->read(content_offset, head.length, &content).ok() ||
          !mcap::decode_seal(content, seal)) {
        continue;
      }
      *seal_offset = offset;
      return content_offset + head.length;
    }
    if (at + length >= size) break;
    at += length - overlap;
  }
  return 0;
}

void SegmentReader::load_step_index() {
  // Footer: magic, preceded by a record of 20 bytes.
  const uint64_t size = file_->size();
  const uint64_t footer_bytes = mcap::kRecordHeaderBytes + 20;
  std::string raw;
  if (size < 2 * mcap::kMagic.size() + footer_bytes ||
      !file_->read(size - mcap::kMagic.size() - footer_bytes, footer_bytes, &raw).ok()) {
    return;
  }
  Decoder footer(raw);
  if (footer.number<uint8_t>() != static_cast<uint8_t>(Opcode::kFooter) ||
      footer.number<uint64_t>() != 20)
    return;
  const auto summary_start = footer.number<uint64_t>();
  // The StepIndex ends where DataEnd (13 bytes) begins, so its length has to be found from the
  // summary's chunk count: it is simplest to walk back over DataEnd and try the record that ends
  // there.
  const uint64_t data_end_bytes = mcap::kRecordHeaderBytes + 4;
  if (summary_start < data_end_bytes || summary_start > size) return;
  uint64_t chunk_count = 0;
  RecordHead head;
  for (uint64_t at = summary_start; read_head(at, &head);
       at += mcap::kRecordHeaderBytes + head.length) {
    if (head.opcode == static_cast<uint8_t>(Opcode::kChunkIndex)) ++chunk_count;
    if (head.opcode == static_cast<uint8_t>(Opcode::kFooter)) break;
  }
  const uint64_t length = 8 + chunk_count * 24 + 4;
  const uint64_t record_bytes = mcap::kRecordHeaderBytes + length;
  if (summary_start < data_end_bytes + record_bytes) return;
  const uint64_t offset = summary_start - data_end_bytes - record_bytes;
  std::string content;
  if (!read_head(offset, &head) || head.opcode != static_cast<uint8_t>(Opcode::kStepIndex) ||
      head.length != length ||
      !file_->read(offset + mcap::kRecordHeaderBytes, length, &content).ok()) {
    return;
  }
  Decoder check(std::string_view(content).substr(length - 4));
  if (check.number<uint32_t>() != mcap::crc32(std::string_view(content).substr(0, length - 4)))
    return;
  Decoder decoder(content);
  if (decoder.number<uint64_t>() != chunk_count) return;
  for (uint64_t i = 0; i < chunk_count; ++i) {
    const auto first = decoder.number<int64_t>();
    const auto last = decoder.number<int64_t>();
    step_index_[decoder.number<uint64_t>()] = {first, last};
  }
}

const std::map<std::string, std::string>& SegmentReader::attachments() {
  if (attachments_read_) return attachments_;
  attachments_read_ = true;
  constexpr size_t kExpected = 3;
  std::string content;
  bool head_sound = true;
  const auto take = [&](uint64_t at, const RecordHead& head) {
    std::string name;
    std::string data;
    if (head.length > mcap::kMaxAttachmentBytes ||
        !file_->read(at + mcap::kRecordHeaderBytes, head.length, &content).ok() ||
        !decode_attachment(content, &name, &data)) {
      head_sound = false;
      return;
    }
    attachments_[name] = std::move(data);  // The latest repetition knows most.
  };
  uint64_t at = mcap::kMagic.size();
  RecordHead head;
  while (read_head(at, &head) && head.opcode != static_cast<uint8_t>(Opcode::kChunk)) {
    if (head.opcode == static_cast<uint8_t>(Opcode::kAttachment)) take(at, head);
    if (head.opcode == static_cast<uint8_t>(Opcode::kDataEnd)) break;
    at += mcap::kRecordHeaderBytes + head.length;
  }
  if (head_sound && attachments_.size() >= kExpected) return attachments_;
  // The head is damaged: the attachments stand again behind the Seals of some chunks.
  mcap::Seal seal;
  uint64_t seal_offset = 0;
  for (uint64_t from = 0; attachments_.size() < kExpected;) {
    const uint64_t end = find_seal(from, file_->size(), &seal, &seal_offset);
    if (end == 0) break;
    for (at = end; read_head(at, &head) && head.opcode == static_cast<uint8_t>(Opcode::kAttachment);
         at += mcap::kRecordHeaderBytes + head.length) {
      take(at, head);
    }
    from = end;
  }
  return attachments_;
}

bool SegmentReader::decode_chunk(std::string_view content, std::string_view* messages,
                                 std::string* why) {
  Decoder decoder(content);
  decoder.number<uint64_t>();
  decoder.number<uint64_t>();
  const auto uncompressed = decoder.number<uint64_t>();
  const auto crc = decoder.number<uint32_t>();
  const std::string_view compression = decoder.text();
  const auto stored_size = decoder.number<uint64_t>();
  if (!decoder.ok() || stored_size != decoder.rest().size()) {
    *why = "the chunk's fields contradict its length";
    return false;
  }
  if (uncompressed > mcap::kMaxChunkBytes) {
    *why = fmt::format("the chunk claims {} bytes, more than the limit of {}", uncompressed,
                       mcap::kMaxChunkBytes);
    return false;
  }
  const std::string_view stored = decoder.rest();
  if (compression.empty()) {
    *messages = stored;
  } else if (compression == "zstd") {
    // The frame's own size is checked before anything is allocated.
    if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != uncompressed) {
      *why = "the chunk's compressed data are damaged";
      return false;
    }
    if (chunk_.size() < uncompressed) chunk_.resize(uncompressed);
    const size_t got = ZSTD_decompressDCtx(decompressor_, chunk_.data(), uncompressed,
                                           stored.data(), stored.size());
    if (ZSTD_isError(got) || got != uncompressed) {
      *why = fmt::format("the chunk cannot be decompressed ({})", ZSTD_getErrorName(got));
      return false;
    }
    *messages = std::string_view(chunk_.data(), uncompressed);
  } else {
    *why = fmt::format("the chunk's compression \"{}\" is unknown", compression.substr(0, 16));
    return false;
  }
  if (messages->size() != uncompressed || mcap::crc32(*messages) != crc) {
    *why = "the chunk's checksum does not match";
    return false;
  }
  compression_ = compression.empty() ? "none" : "zstd";
  return true;
}

bool SegmentReader::deliver(std::string_view records, const Callbacks& callbacks) {
  Decoder decoder(records);
  while (decoder.ok() && !decoder.rest().empty()) {
    const auto opcode = static_cast<Opcode>(decoder.number<uint8_t>());
    Decoder record(decoder.bytes(decoder.number<uint64_t>()));
    if (!decoder.ok()) break;
    if (opcode == Opcode::kChannel) {
      const auto id = record.number<uint16_t>();
      record.number<uint16_t>();
      const std::string_view topic = record.text();
      if (!record.ok()) continue;
      if (topics_.size() <= id) {
        topics_.resize(size_t{id} + 1);
        next_sequence_.resize(size_t{id} + 1, -1);
      }
      if (topics_[id] != topic) topics_[id] = topic;
    } else if (opcode == Opcode::kMessage) {
      const auto id = record.number<uint16_t>();
      const auto sequence = record.number<uint32_t>();
      record.number<uint64_t>();
      const auto publish_time = record.number<uint64_t>();
      if (!record.ok() || id >= topics_.size() || topics_[id].empty()) continue;
      const int64_t expected = next_sequence_[id] < 0 ? 0 : next_sequence_[id];
      if (sequence > expected && callbacks.on_gap) callbacks.on_gap(sequence - expected);
      next_sequence_[id] = int64_t{sequence} + 1;
      if (!callbacks.on_message({&topics_[id], record.rest(), static_cast<int64_t>(publish_time)}))
        return false;
    }
  }
  return true;
}

Status SegmentReader::walk(const Callbacks& callbacks) {
  topics_.clear();
  next_sequence_.clear();
  chunks_ = 0;
  bool counts_gaps = true;
  Callbacks inner = callbacks;
  inner.on_gap = [&](uint64_t messages) {
    if (counts_gaps && callbacks.on_gap) callbacks.on_gap(messages);
  };
  const uint64_t size = file_->size();
  uint64_t at = mcap::kMagic.size();
  uint64_t passed_to = 0;  // end of the last chunk that was delivered, or was not wanted
  std::string head_magic;
  if (size < mcap::kMagic.size() || !file_->read(0, mcap::kMagic.size(), &head_magic).ok() ||
      head_magic != mcap::kMagic) {
    at = 0;  // Leads to a search for the first Seal.
  }
  while (at < size) {
    RecordHead head;
    std::string why;
    if (at >= mcap::kMagic.size() && read_head(at, &head)) {
      const uint64_t content_offset = at + mcap::kRecordHeaderBytes;
      const uint64_t next = content_offset + head.length;
      const auto opcode = static_cast<Opcode>(head.opcode);
      if (opcode == Opcode::kChunk) {
        const auto known = step_index_.find(at);
        if (known != step_index_.end() && known->second.first <= known->second.second &&
            callbacks.wanted && !callbacks.wanted(known->second.first, known->second.second)) {
          counts_gaps = false;  // Numbers skipped on purpose prove nothing.
          passed_to = next;
          at = next;
          continue;
        }
        std::string_view messages;
        if (head.length > mcap::kMaxChunkBytes) {
          why = "the chunk's length is beyond the limit";
        } else if (Status status = file_->read(content_offset, head.length, &stored_);
                   !status.ok()) {
          return status;
        } else if (decode_chunk(stored_, &messages, &why)) {
          ++chunks_;
          passed_to = next;
          if (!deliver(messages, inner)) return Status();
          at = next;
          continue;
        }
      } else if (opcode == Opcode::kSeal) {
        mcap::Seal seal;
        if (head.length <= kMaxSealBytes &&
            file_->read(content_offset, head.length, &stored_).ok() &&
            mcap::decode_seal(stored_, &seal)) {
          if (seal.chunk_offset < passed_to || seal.chunk_offset >= at) {
            at = next;
            continue;
          }
          why = "the chunk has the type of another record";
          at = seal.chunk_offset;
        } else {
          why = "the Seal's checksum does not match";
        }
      } else if (opcode == Opcode::kFooter) {
        if (next + mcap::kMagic.size() == size && sealed_) return Status();
        why = "a footer that is not at the end of the file";
      } else if (opcode == Opcode::kAttachment) {
        std::string name;
        std::string data;
        if (head.length <= mcap::kMaxAttachmentBytes &&
            file_->read(content_offset, head.length, &stored_).ok() &&
            decode_attachment(stored_, &name, &data)) {
          at = next;
          continue;
        }
        why = "an attachment's checksum does not match";
      } else if (opcode == Opcode::kMessageIndex) {
        // It has no checksum, so a wrong length must not carry the walk over the next chunk.
        if (file_->read(content_offset, std::min<uint64_t>(head.length, 6), &stored_).ok()) {
          Decoder index(stored_);
          index.number<uint16_t>();
          const uint64_t entries = index.number<uint32_t>();
          if (index.ok() && entries + 6 == head.length) {
            at = next;
            continue;
          }
        }
        why = "a message index contradicts its length";
      } else {
        // None of these has a checksum either.
        mcap::Seal seal;
        uint64_t seal_offset = 0;
        if (find_seal(content_offset, next, &seal, &seal_offset) == 0) {
          at = next;
          continue;
        }
        why = "the record's length reaches over a chunk";
      }
    } else {
      why = "the record's type or length is impossible, or the file ends within it";
    }
    // Search for the next Seal; the chunk it vouches for may be intact although what stands before
    // is not.
    mcap::Seal seal;
    uint64_t seal_offset = 0;
    const uint64_t resume = find_seal(std::max<uint64_t>(at, 1), size, &seal, &seal_offset);
    if (resume == 0) {
      if (callbacks.on_skipped) callbacks.on_skipped(at, size, why);
      return Status();
    }
    std::string_view messages;
    std::string chunk_why;
    std::string record;
    const bool new_chunk =
        seal.chunk_offset >= passed_to && seal.chunk_length > mcap::kRecordHeaderBytes &&
        seal.chunk_length <= mcap::kMaxChunkBytes && seal.chunk_offset < seal_offset &&
        seal.chunk_length <= seal_offset - seal.chunk_offset;
    if (new_chunk && file_->read(seal.chunk_offset, seal.chunk_length, &record).ok() &&
        mcap::crc32(record) == seal.chunk_crc &&
        decode_chunk(std::string_view(record).substr(mcap::kRecordHeaderBytes), &messages,
                     &chunk_why)) {
      if (callbacks.on_skipped) {
        callbacks.on_skipped(std::min(at, seal.chunk_offset), seal.chunk_offset, why);
      }
      ++chunks_;
      passed_to = seal.chunk_offset + seal.chunk_length;
      if (!deliver(messages, inner)) return Status();
    } else if (callbacks.on_skipped) {
      callbacks.on_skipped(at, resume, why);
    }
    at = resume;
  }
  return Status();
}

}  // namespace tycho::trace
