#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>
#include <limits>

#include "segment_reader.h"

// The way through the data section of a segment, damage included (docs/format.md 5).
namespace tycho::trace {

using mcap::Decoder;
using mcap::Opcode;

Status SegmentReader::walk(const Callbacks& callbacks) {
  rewind();
  advance(callbacks, false, std::numeric_limits<uint64_t>::max());
  return Status();
}

void SegmentReader::rewind() {
  topics_.clear();
  next_sequence_.clear();
  chunks_ = 0;
  at_ = 0;
  read_last_.clear();
  tail_why_.clear();
  walk_ = Walk();
  walk_.bytes_left = mcap::kFreeSegmentBytes;
  walk_.messages_left = mcap::kFreeMessages;
}

void SegmentReader::advance(const Callbacks& callbacks, bool more_to_come, uint64_t most_bytes) {
  const uint64_t size = file_->size();
  tail_why_.clear();
  walk_.callbacks = &callbacks;
  walk_.more_to_come = more_to_come;
  if (size > walk_.allowed_size) {
    walk_.bytes_left += mcap::kMaxSegmentRatio * (size - walk_.allowed_size);
    walk_.messages_left +=
        size / mcap::kIndexEntryBytes - walk_.allowed_size / mcap::kIndexEntryBytes;
    walk_.allowed_size = size;
  }
  if (at_ == 0) {
    if (more_to_come && size < mcap::kMagic.size()) return;
    // Without the magic, nothing can be read before the first Seal is found.
    if (starts_with_magic()) at_ = mcap::kMagic.size();
  }
  const uint64_t begin = at_;
  while (at_ < size && !walk_.stopped && at_ - begin < most_bytes) {
    std::string why;
    uint64_t end = take_record(at_, &walk_, &why);
    if (end <= at_ && !walk_.stopped) end = resynchronise(at_, why, &walk_);
    if (end <= at_) break;  // Every iteration goes forward, or is the last.
    at_ = end;
  }
  walk_.callbacks = nullptr;
  if (at_ > begin) remember_end();
}

// The end of the record at `at`; 0 and why, where it cannot be read or its length not be trusted.
uint64_t SegmentReader::take_record(uint64_t at, Walk* walk, std::string* why) {
  RecordHead head;
  if (at < mcap::kMagic.size()) {
    *why = "the file does not begin with MCAP's magic";
    return 0;
  }
  if (!read_head(at, &head)) {
    *why = "the record's type or length is impossible, or the file ends within it";
    return 0;
  }
  const uint64_t content_offset = at + mcap::kRecordHeaderBytes;
  const uint64_t end = content_offset + head.length;
  switch (static_cast<Opcode>(head.opcode)) {
    case Opcode::kChunk:
      return take_chunk(at, head, walk, why);
    case Opcode::kSeal:
      return take_seal(at, head, walk, why);
    case Opcode::kFooter: {
      if (!sealed_ || end + mcap::kMagic.size() != file_->size()) {
        *why = "a footer that is not at the end of the file";
        return 0;
      }
      std::string magic;
      if ((!file_->read(end, mcap::kMagic.size(), &magic).ok() || magic != mcap::kMagic) &&
          walk->callbacks->on_skipped) {
        walk->callbacks->on_skipped(end, file_->size(), "the closing magic is damaged");
      }
      walk->stopped = true;
      return file_->size();
    }
    case Opcode::kAttachment: {
      if (read_content(at, head, mcap::kMaxAttachmentBytes) && mcap::ends_with_its_crc32(stored_)) {
        return end;
      }
      *why = "an attachment's checksum does not match";
      return 0;
    }
    case Opcode::kMessageIndex: {
      // It has no checksum, so a wrong length must not carry the walk over the next chunk.
      if (file_->read(content_offset, std::min<uint64_t>(head.length, 6), &stored_).ok()) {
        Decoder index(stored_);
        index.number<uint16_t>();
        const uint64_t entries = index.number<uint32_t>();
        if (index.ok() && entries + 6 == head.length) return end;
      }
      *why = "a message index contradicts its length";
      return 0;
    }
    default: {
      // None of these has a checksum either.
      mcap::Seal seal;
      uint64_t seal_offset = 0;
      if (find_seal(content_offset, end, &seal, &seal_offset) == 0) return end;
      *why = "the record's length reaches over a chunk";
      return 0;
    }
  }
}

bool SegmentReader::read_content(uint64_t at, const RecordHead& head, uint64_t limit) {
  return head.length <= limit &&
         file_->read(at + mcap::kRecordHeaderBytes, head.length, &stored_).ok();
}

uint64_t SegmentReader::take_chunk(uint64_t at, const RecordHead& head, Walk* walk,
                                   std::string* why) {
  const uint64_t end = at + mcap::kRecordHeaderBytes + head.length;
  const auto known = step_index_.find(at);
  if (known != step_index_.end() && known->second.first <= known->second.second &&
      walk->callbacks->wanted &&
      !walk->callbacks->wanted(known->second.first, known->second.second)) {
    walk->counts_gaps = false;  // Numbers skipped on purpose prove nothing.
    walk->passed_to = end;
    return end;
  }
  std::string_view messages;
  if (!read_content(at, head, mcap::kMaxChunkBytes)) {
    *why = "the chunk cannot be read";
    return 0;
  }
  if (!decode_chunk(stored_, walk, &messages, why)) return 0;
  ++chunks_;
  walk->passed_to = end;
  if (deliver(messages, walk)) return end;
  *why = "the segment has more messages than its size allows";
  return 0;
}

uint64_t SegmentReader::take_seal(uint64_t at, const RecordHead& head, Walk* walk,
                                  std::string* why) {
  mcap::Seal seal;
  if (!read_content(at, head, mcap::kMaxSealBytes) || !mcap::decode_seal(stored_, &seal)) {
    *why = "the Seal's checksum does not match";
    return 0;
  }
  const uint64_t end = at + mcap::kRecordHeaderBytes + head.length;
  if (seal.chunk_offset >= walk->passed_to && seal.chunk_offset < at) {
    take_sealed_chunk(seal, at, end, seal.chunk_offset, "the chunk has the type of another record",
                      walk);
  }
  return end;
}

// Searches for the next Seal; the chunk it vouches for may be intact although what stands before
// is not. Returns the end of the Seal, or of the file; `at` where the file may still grow.
uint64_t SegmentReader::resynchronise(uint64_t at, const std::string& why, Walk* walk) {
  mcap::Seal seal;
  uint64_t seal_offset = 0;
  const uint64_t size = file_->size();
  const uint64_t end = find_seal(std::max<uint64_t>(at, 1), size, &seal, &seal_offset);
  if (end == 0) {
    if (walk->more_to_come) {
      tail_why_ = why;
      return at;
    }
    if (walk->callbacks->on_skipped) walk->callbacks->on_skipped(at, size, why);
    return size;
  }
  take_sealed_chunk(seal, seal_offset, end, at, why, walk);
  return end;
}

// Delivers the chunk of a Seal unless it was met before, and reports what could not be read from
// `damaged_from` on. Each stretch of the file is tried for one Seal only.
void SegmentReader::take_sealed_chunk(const mcap::Seal& seal, uint64_t seal_offset,
                                      uint64_t seal_end, uint64_t damaged_from,
                                      const std::string& why, Walk* walk) {
  std::string_view messages;
  std::string chunk_why;
  std::string record;
  const bool is_new =
      seal.chunk_offset >= walk->passed_to && seal.chunk_length > mcap::kRecordHeaderBytes &&
      seal.chunk_length <= mcap::kMaxChunkBytes && seal.chunk_offset < seal_offset &&
      seal.chunk_length <= seal_offset - seal.chunk_offset;
  const bool intact = is_new && file_->read(seal.chunk_offset, seal.chunk_length, &record).ok() &&
                      mcap::has_crc32(record, seal.chunk_crc) &&
                      decode_chunk(std::string_view(record).substr(mcap::kRecordHeaderBytes), walk,
                                   &messages, &chunk_why);
  walk->passed_to = std::max(walk->passed_to, seal_end);
  if (walk->callbacks->on_skipped) {
    if (intact) {
      walk->callbacks->on_skipped(std::min(damaged_from, seal.chunk_offset), seal.chunk_offset,
                                  why);
    } else {
      walk->callbacks->on_skipped(damaged_from, seal_end, why);
    }
  }
  if (!intact) return;
  ++chunks_;
  if (!deliver(messages, walk) && walk->callbacks->on_skipped) {
    walk->callbacks->on_skipped(seal.chunk_offset, seal_end,
                                "the segment has more messages than its size allows");
  }
}

bool SegmentReader::decode_chunk(std::string_view content, Walk* walk, std::string_view* messages,
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
  if (!mcap::is_plausible_chunk(uncompressed, stored_size)) {
    *why = fmt::format("the chunk claims {} bytes, more than its {} stored bytes may hold",
                       uncompressed, stored_size);
    return false;
  }
  if (uncompressed > walk->bytes_left) {
    *why = "the segment's chunks hold more bytes than its size allows";
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
    walk->bytes_left -= uncompressed;
    if (chunk_.size() < uncompressed) chunk_.resize(uncompressed);
    const size_t got = ZSTD_decompressDCtx(decompressor_, chunk_.data(), uncompressed,
                                           stored.data(), stored.size());
    if (ZSTD_isError(got) || got != uncompressed) {
      *why = fmt::format("the chunk cannot be decompressed ({})", ZSTD_getErrorName(got));
      return false;
    }
    *messages = std::string_view(chunk_.data(), uncompressed);
  } else {
    *why = "the chunk's compression is unknown";
    return false;
  }
  if (messages->size() != uncompressed || !mcap::has_crc32(*messages, crc)) {
    *why = "the chunk's checksum does not match";
    return false;
  }
  compression_ = compression.empty() ? "none" : "zstd";
  return true;
}

// False: there are more messages than the file's size allows.
bool SegmentReader::deliver(std::string_view records, Walk* walk) {
  Decoder decoder(records);
  while (decoder.ok() && !decoder.rest().empty() && !walk->stopped) {
    const auto opcode = static_cast<Opcode>(decoder.number<uint8_t>());
    Decoder record(decoder.bytes(decoder.number<uint64_t>()));
    if (!decoder.ok()) break;
    if (opcode == Opcode::kChannel) {
      const auto id = record.number<uint16_t>();
      record.number<uint16_t>();
      const std::string_view topic = record.text();
      if (!record.ok() || topic.size() > mcap::kMaxTopicBytes) continue;
      if (topics_.size() <= id) {
        topics_.resize(size_t{id} + 1);
        next_sequence_.resize(size_t{id} + 1, -1);
      }
      if (topics_[id] != topic) topics_[id] = topic;
    } else if (opcode == Opcode::kMessage) {
      if (walk->messages_left == 0) return false;
      --walk->messages_left;
      take_message(record.rest(), walk);
    }
  }
  return true;
}

void SegmentReader::take_message(std::string_view content, Walk* walk) {
  Decoder record(content);
  const auto id = record.number<uint16_t>();
  const auto sequence = record.number<uint32_t>();
  record.number<uint64_t>();
  const auto publish_time = record.number<uint64_t>();
  if (!record.ok() || id >= topics_.size() || topics_[id].empty()) return;
  const int64_t expected = next_sequence_[id] < 0 ? 0 : next_sequence_[id];
  if (sequence > expected && walk->counts_gaps && walk->callbacks->on_gap) {
    walk->callbacks->on_gap(static_cast<uint64_t>(sequence - expected));
  }
  next_sequence_[id] = int64_t{sequence} + 1;
  walk->stopped = !walk->callbacks->on_message(
      {&topics_[id], record.rest(), static_cast<int64_t>(publish_time)});
}

}  // namespace tycho::trace
