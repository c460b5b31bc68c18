#include "segment_writer.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <zstd.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>

#include "tycho/v1/record.pb.h"
#include "writer_process.h"

namespace tycho::trace {
namespace {

using mcap::append_record;
using mcap::Encoder;
using mcap::Opcode;

// The attachments are written again after this many chunks (and after the first).
constexpr uint64_t kRepeatAttachments = 64;

void collect(const google::protobuf::FileDescriptor* file, std::set<std::string>* seen,
             google::protobuf::FileDescriptorSet* set) {
  if (!seen->insert(file->name()).second) return;
  for (int i = 0; i < file->dependency_count(); ++i) collect(file->dependency(i), seen, set);
  file->CopyTo(set->add_file());
}

// All messages live in record.proto and run.proto, so one descriptor set serves every schema.
const std::string& descriptor_set() {
  static const std::string bytes = [] {
    google::protobuf::FileDescriptorSet set;
    std::set<std::string> seen;
    collect(v1::Record::descriptor()->file(), &seen, &set);
    return set.SerializeAsString();
  }();
  return bytes;
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

Result<std::unique_ptr<SegmentWriter>> SegmentWriter::create(FileSystem* files,
                                                             const std::string& path,
                                                             SegmentOptions options) {
  auto file = files->create(path);
  if (!file.ok()) return file.status();
  std::unique_ptr<SegmentWriter> writer(
      new SegmentWriter(std::move(file).value(), std::move(options)));
  if (!writer->locked()) writer->options_.run_metadata["writer"] = this_process();
  if (Status status = writer->write_head(); !status.ok()) {
    // Nothing can be in it, and on a full disk there would be one more with every attempt.
    writer.reset();
    (void)files->remove(path);
    return status;
  }
  return writer;
}

Status SegmentWriter::append(std::string_view bytes) {
  if (!failure_.ok()) return failure_;
  failure_ = file_->append(bytes);
  if (failure_.ok()) offset_ += bytes.size();
  return failure_;
}

Status SegmentWriter::write_head() {
  std::string head(mcap::kMagic);
  std::string content;
  Encoder encoder(&content);
  encoder.text(mcap::kProfile);
  encoder.text("tycho " TYCHO_VERSION);
  append_record(Opcode::kHeader, content, &head);
  metadata_offset_ = head.size();
  content.clear();
  encoder.text("run");
  encoder.text_map(options_.run_metadata);
  append_record(Opcode::kMetadata, content, &head);
  metadata_length_ = head.size() - metadata_offset_;
  head += encode_attachments(head.size(), &attachment_facts_);
  return append(head);
}

std::string SegmentWriter::encode_attachments(uint64_t offset,
                                              std::vector<AttachmentFacts>* all_facts) const {
  std::string records;
  for (const Attachment& attachment : options_.attachments) {
    AttachmentFacts facts;
    facts.offset = offset + records.size();
    facts.time = now_ns();
    facts.size = attachment.data.size();
    facts.name = attachment.name;
    facts.media_type = attachment.media_type;
    std::string content;
    Encoder encoder(&content);
    encoder.number(facts.time);
    encoder.number(facts.time);
    encoder.text(attachment.name);
    encoder.text(attachment.media_type);
    encoder.number(static_cast<uint64_t>(attachment.data.size()));
    encoder.bytes(attachment.data);
    encoder.number(mcap::crc32(content));
    append_record(Opcode::kAttachment, content, &records);
    facts.length = offset + records.size() - facts.offset;
    all_facts->push_back(std::move(facts));
  }
  return records;
}

SegmentWriter::ChannelState& SegmentWriter::channel(const std::string& topic,
                                                    const std::string& schema) {
  const auto found = channels_.find(topic);
  if (found != channels_.end()) return found->second;
  std::string content;
  Encoder encoder(&content);
  const auto [entry, is_new] = schemas_.try_emplace(schema);
  SchemaState& schema_state = entry->second;
  if (is_new) {
    schema_state.id = static_cast<uint16_t>(schemas_.size());
    encoder.number(schema_state.id);
    encoder.text(schema);
    encoder.text("protobuf");
    encoder.text(descriptor_set());
    append_record(Opcode::kSchema, content, &schema_state.record);
    content.clear();
  }
  ChannelState& state = channels_[topic];
  state.id = static_cast<uint16_t>(channels_.size() - 1);
  state.schema = &schema_state;
  encoder.number(state.id);
  encoder.number(schema_state.id);
  encoder.text(topic);
  encoder.text("protobuf");
  encoder.text_map({});
  append_record(Opcode::kChannel, content, &state.record);
  return state;
}

void SegmentWriter::pass_over(const std::string& topic, const std::string& schema) {
  ++channel(topic, schema).sequence;
}

bool SegmentWriter::rewind() {
  if (sealed_ || !file_->truncate(offset_).ok()) return false;
  for (auto& [topic, state] : channels_) {
    state.messages -= state.index.size();
    state.index.clear();
  }
  chunk_messages_ = 0;
  chunk_.clear();
  ++chunk_number_;
  failure_ = Status();
  return true;
}

Status SegmentWriter::write(const std::string& topic, const std::string& schema,
                            std::string_view data, bool has_step, int64_t step, int64_t time_ns) {
  if (!failure_.ok()) return failure_;
  ChannelState& state = channel(topic, schema);
  // Memory first: where it is out, the chunk stays whole.
  chunk_.reserve(chunk_.size() + state.schema->record.size() + state.record.size() + 64 +
                 data.size());
  // Repeating the descriptions in every chunk makes each chunk decodable alone.
  if (state.schema->in_chunk != chunk_number_) {
    chunk_ += state.schema->record;
    state.schema->in_chunk = chunk_number_;
  }
  if (state.in_chunk != chunk_number_) {
    chunk_ += state.record;
    state.in_chunk = chunk_number_;
  }
  const uint64_t log_time = std::max(last_time_ + 1, now_ns());
  last_time_ = log_time;
  if (chunk_messages_ == 0) {
    chunk_begin_time_ = log_time;
    chunk_opened_ = std::chrono::steady_clock::now();
    chunk_first_step_ = 0;
    chunk_last_step_ = -1;
  }
  if (messages_ == 0 && chunk_messages_ == 0 && chunks_.empty()) begin_time_ = log_time;
  if (has_step) {
    const bool first = chunk_first_step_ > chunk_last_step_;
    chunk_first_step_ = first ? step : std::min(chunk_first_step_, step);
    chunk_last_step_ = first ? step : std::max(chunk_last_step_, step);
  }
  state.index.emplace_back(log_time, chunk_.size());
  Encoder encoder(&chunk_);
  encoder.number(static_cast<uint8_t>(Opcode::kMessage));
  encoder.number(static_cast<uint64_t>(22 + data.size()));
  encoder.number(state.id);
  encoder.number(state.sequence++);
  encoder.number(log_time);
  encoder.number(static_cast<uint64_t>(time_ns));
  encoder.bytes(data);
  ++state.messages;
  ++chunk_messages_;
  if (chunk_.size() >= options_.chunk_bytes) return close_chunk();
  return Status();
}

Status SegmentWriter::close_chunk() {
  if (!failure_.ok() || chunk_messages_ == 0) return failure_;
  std::string compressed;
  ChunkFacts facts;
  if (options_.compression_level > 0) {
    compressed.resize(ZSTD_compressBound(chunk_.size()));
    const size_t size = ZSTD_compress(compressed.data(), compressed.size(), chunk_.data(),
                                      chunk_.size(), options_.compression_level);
    // A reader takes what shrinks more than that for a forgery. Numbers that are all the same cost
    // no more so than numbers that differ.
    if (!ZSTD_isError(size) && size < chunk_.size() &&
        mcap::is_plausible_chunk(chunk_.size(), size) &&
        chunk_.size() / mcap::kMaxSegmentRatio <= size) {
      compressed.resize(size);
      facts.compression = "zstd";
    }
  }
  const std::string& stored = facts.compression.empty() ? chunk_ : compressed;
  facts.begin_time = chunk_begin_time_;
  facts.end_time = last_time_;
  facts.offset = offset_;
  facts.compressed = stored.size();
  facts.uncompressed = chunk_.size();
  facts.first_step = chunk_first_step_;
  facts.last_step = chunk_last_step_;

  std::string records;
  records.reserve(stored.size() + 4096);
  {
    Encoder encoder(&records);
    encoder.number(static_cast<uint8_t>(Opcode::kChunk));
    encoder.number(
        static_cast<uint64_t>(8 + 8 + 8 + 4 + 4 + facts.compression.size() + 8 + stored.size()));
    encoder.number(facts.begin_time);
    encoder.number(facts.end_time);
    encoder.number(facts.uncompressed);
    encoder.number(mcap::crc32(chunk_));
    encoder.text(facts.compression);
    encoder.number(static_cast<uint64_t>(stored.size()));
    encoder.bytes(stored);
  }
  facts.length = records.size();
  mcap::Seal seal;
  seal.chunk_offset = facts.offset;
  seal.chunk_length = facts.length;
  seal.chunk_crc = mcap::crc32(records);
  seal.first_step = facts.first_step;
  seal.last_step = facts.last_step;
  seal.previous_seal = previous_seal_;
  for (auto& [topic, state] : channels_) {
    seal.message_counts[state.id] = state.messages;
    if (state.index.empty()) continue;
    facts.index_offsets[state.id] = offset_ + records.size();
    std::string content;
    Encoder encoder(&content);
    encoder.number(state.id);
    encoder.number(static_cast<uint32_t>(state.index.size() * 16));
    for (const auto& [time, position] : state.index) {
      encoder.number(time);
      encoder.number(position);
    }
    append_record(Opcode::kMessageIndex, content, &records);
  }
  facts.index_length = records.size() - facts.length;
  const uint64_t seal_offset = offset_ + records.size();
  append_record(Opcode::kSeal, mcap::encode_seal(seal), &records);
  // Everything that needs memory comes before the bytes are written: what is written once must
  // not be written again.
  std::vector<AttachmentFacts> repeated;
  if (chunks_.empty() || (chunks_.size() + 1) % kRepeatAttachments == 0) {
    records += encode_attachments(offset_ + records.size(), &repeated);
  }
  if (chunks_.size() == chunks_.capacity()) chunks_.reserve(2 * chunks_.size() + 1);
  attachment_facts_.reserve(attachment_facts_.size() + repeated.size());
  if (Status status = append(records); !status.ok()) return status;
  for (auto& [topic, state] : channels_) state.index.clear();
  previous_seal_ = seal_offset;
  messages_ += chunk_messages_;
  chunk_messages_ = 0;
  chunk_.clear();
  chunks_.push_back(std::move(facts));
  std::move(repeated.begin(), repeated.end(), std::back_inserter(attachment_facts_));
  ++chunk_number_;
  return Status();
}

std::string SegmentWriter::summary() const {
  std::string out;
  std::string offsets;
  const auto group = [&](Opcode opcode, const std::function<void()>& write_records) {
    const uint64_t begin = offset_ + out.size();
    write_records();
    const uint64_t end = offset_ + out.size();
    if (end == begin) return;
    std::string content;
    Encoder encoder(&content);
    encoder.number(static_cast<uint8_t>(opcode));
    encoder.number(begin);
    encoder.number(end - begin);
    append_record(Opcode::kSummaryOffset, content, &offsets);
  };
  group(Opcode::kSchema, [&] {
    for (const auto& [name, state] : schemas_) out += state.record;
  });
  group(Opcode::kChannel, [&] {
    for (const auto& [topic, state] : channels_) out += state.record;
  });
  std::string content;
  Encoder encoder(&content);
  group(Opcode::kStatistics, [&] {
    encoder.number(messages_);
    encoder.number(static_cast<uint16_t>(schemas_.size()));
    encoder.number(static_cast<uint32_t>(channels_.size()));
    encoder.number(static_cast<uint32_t>(attachment_facts_.size()));
    encoder.number(uint32_t{1});
    encoder.number(static_cast<uint32_t>(chunks_.size()));
    encoder.number(begin_time_);
    encoder.number(last_time_);
    std::map<uint16_t, uint64_t> counts;
    for (const auto& [topic, state] : channels_) counts[state.id] = state.messages;
    encoder.count_map(counts);
    append_record(Opcode::kStatistics, content, &out);
  });
  group(Opcode::kChunkIndex, [&] {
    for (const ChunkFacts& chunk : chunks_) {
      content.clear();
      encoder.number(chunk.begin_time);
      encoder.number(chunk.end_time);
      encoder.number(chunk.offset);
      encoder.number(chunk.length);
      encoder.count_map(chunk.index_offsets);
      encoder.number(chunk.index_length);
      encoder.text(chunk.compression);
      encoder.number(chunk.compressed);
      encoder.number(chunk.uncompressed);
      append_record(Opcode::kChunkIndex, content, &out);
    }
  });
  group(Opcode::kAttachmentIndex, [&] {
    for (const AttachmentFacts& attachment : attachment_facts_) {
      content.clear();
      encoder.number(attachment.offset);
      encoder.number(attachment.length);
      encoder.number(attachment.time);
      encoder.number(attachment.time);
      encoder.number(attachment.size);
      encoder.text(attachment.name);
      encoder.text(attachment.media_type);
      append_record(Opcode::kAttachmentIndex, content, &out);
    }
  });
  group(Opcode::kMetadataIndex, [&] {
    content.clear();
    encoder.number(metadata_offset_);
    encoder.number(metadata_length_);
    encoder.text("run");
    append_record(Opcode::kMetadataIndex, content, &out);
  });
  const uint64_t summary_start = offset_;
  const uint64_t offsets_start = offset_ + out.size();
  out += offsets;
  // The checksum covers the summary and the footer up to the checksum itself.
  out.push_back(static_cast<char>(Opcode::kFooter));
  Encoder footer(&out);
  footer.number(uint64_t{20});
  footer.number(summary_start);
  footer.number(offsets_start);
  footer.number(mcap::crc32(out));
  out += mcap::kMagic;
  return out;
}

Status SegmentWriter::seal() {
  if (sealed_) return Status();
  if (Status status = close_chunk(); !status.ok()) return status;
  std::string end;
  std::string content;
  Encoder encoder(&content);
  encoder.number(static_cast<uint64_t>(chunks_.size()));
  for (const ChunkFacts& chunk : chunks_) {
    encoder.number(chunk.first_step);
    encoder.number(chunk.last_step);
    encoder.number(chunk.offset);
  }
  encoder.number(mcap::crc32(content));
  append_record(Opcode::kStepIndex, content, &end);
  content.assign(4,
                 '\0');  // Zero: the data section has no checksum of its own; chunks and Seals do.
  append_record(Opcode::kDataEnd, content, &end);
  const uint64_t data_end = offset_;
  if (Status status = append(end); !status.ok()) return status;
  if (Status status = append(summary()); !status.ok()) {
    offset_ = data_end;  // To be taken back as a whole.
    return status;
  }
  sealed_ = true;
  if (Status status = file_->sync(); !status.ok()) return failure_ = status;
  return failure_ = file_->close();
}

}  // namespace tycho::trace
