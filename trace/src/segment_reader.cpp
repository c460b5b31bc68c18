#include "segment_reader.h"

#include <fmt/format.h>
#include <zstd.h>

#include <algorithm>

namespace tycho::trace {
namespace {

using mcap::Decoder;
using mcap::Opcode;

constexpr uint64_t kSearchBytes = uint64_t{1} << 20;
constexpr uint64_t kFooterBytes = mcap::kRecordHeaderBytes + 20;

bool is_known(uint8_t opcode) { return (opcode >= 0x01 && opcode <= 0x0F) || opcode >= 0x80; }

bool decode_attachment(std::string_view content, std::string* name, std::string* data) {
  if (!mcap::ends_with_its_crc32(content)) return false;
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
  // Its writer has just created it.
  if (size < mcap::kMagic.size() && reader->locked()) return reader;
  if (size == 0) return Status(Status::Code::kNotATrace, fmt::format("{} is empty", path));
  if (!reader->starts_with_magic()) {
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
  reader->look_at_end();
  if (reader->sealed_) reader->load_step_index();
  return reader;
}

// The footer and the magic behind it: either is enough, so that damage to one does not make a
// sealed segment look like one whose writer died.
void SegmentReader::look_at_end() {
  const uint64_t size = file_->size();
  std::string tail;
  sealed_ = false;
  if (size >= mcap::kMagic.size() + kFooterBytes + mcap::kMagic.size() &&
      file_
          ->read(size - kFooterBytes - mcap::kMagic.size(), kFooterBytes + mcap::kMagic.size(),
                 &tail)
          .ok()) {
    Decoder footer(tail);
    const bool is_footer = footer.number<uint8_t>() == static_cast<uint8_t>(Opcode::kFooter) &&
                           footer.number<uint64_t>() == 20;
    sealed_ = is_footer || std::string_view(tail).substr(kFooterBytes) == mcap::kMagic;
  }
}

Status SegmentReader::refresh() {
  if (Status status = file_->refresh(); !status.ok()) return status;
  std::string now;
  if (file_->size() < at_ ||
      (!read_last_.empty() &&
       (!file_->read(at_ - read_last_.size(), read_last_.size(), &now).ok() ||
        now != read_last_))) {
    return Status(Status::Code::kCorrupt,
                  fmt::format("{} no longer holds what was read of it, at byte {}", path_, at_));
  }
  // The head may have been written in part.
  head_read_ = false;
  look_at_end();
  return Status();
}

// A Seal is this long and has the checksum of its chunk; so the bytes stand for all before them.
void SegmentReader::remember_end() {
  constexpr uint64_t kBytes = 96;
  const uint64_t bytes = std::min(kBytes, at_);
  if (!file_->read(at_ - bytes, bytes, &read_last_).ok()) read_last_.clear();
}

bool SegmentReader::starts_with_magic() const {
  std::string magic;
  return file_->size() >= mcap::kMagic.size() && file_->read(0, mcap::kMagic.size(), &magic).ok() &&
         magic == mcap::kMagic;
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
          head.length > mcap::kMaxSealBytes ||
          !file_->read(content_offset, head.length, &content).ok() ||
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
  std::string raw;
  if (!file_->read(size - mcap::kMagic.size() - kFooterBytes, kFooterBytes, &raw).ok()) return;
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
  if (!mcap::ends_with_its_crc32(content)) return;
  Decoder decoder(content);
  if (decoder.number<uint64_t>() != chunk_count) return;
  for (uint64_t i = 0; i < chunk_count; ++i) {
    const auto first = decoder.number<int64_t>();
    const auto last = decoder.number<int64_t>();
    step_index_[decoder.number<uint64_t>()] = {first, last};
  }
}

const std::map<std::string, std::string>& SegmentReader::attachments() {
  read_head_records();
  return attachments_;
}

const std::map<std::string, std::string>& SegmentReader::run_metadata() {
  read_head_records();
  return run_metadata_;
}

void SegmentReader::read_head_records() {
  if (head_read_) return;
  head_read_ = true;
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
    if (head.opcode == static_cast<uint8_t>(Opcode::kMetadata) &&
        file_->read(at + mcap::kRecordHeaderBytes, head.length, &content).ok()) {
      Decoder decoder(content);
      if (decoder.text() == "run") run_metadata_ = decoder.text_map();
    }
    if (head.opcode == static_cast<uint8_t>(Opcode::kDataEnd)) break;
    at += mcap::kRecordHeaderBytes + head.length;
  }
  if (head_sound && attachments_.size() >= kExpected) return;
  // The head is damaged: the attachments stand again behind the Seals of some chunks.
  mcap::Seal seal;
  uint64_t seal_offset = 0;
  for (uint64_t from = 0; attachments_.size() < kExpected;) {
    const uint64_t end = find_seal(from, file_->size(), &seal, &seal_offset);
    if (end <= from) break;
    for (at = end; read_head(at, &head) && head.opcode == static_cast<uint8_t>(Opcode::kAttachment);
         at += mcap::kRecordHeaderBytes + head.length) {
      take(at, head);
    }
    from = std::max(end, at);
  }
}

}  // namespace tycho::trace
