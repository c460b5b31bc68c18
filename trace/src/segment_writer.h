#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mcap.h"
#include "tycho/trace/file_system.h"

namespace tycho::trace {

/// A named blob at the head of a segment, repeated from time to time so that a damaged head loses
/// nothing.
struct Attachment {
  std::string name;
  std::string media_type;
  std::string data;
};

struct SegmentOptions {
  uint64_t chunk_bytes = uint64_t{1} << 20;
  int compression_level = 1;
  std::map<std::string, std::string> run_metadata;
  std::vector<Attachment> attachments;
};

/// Writes one MCAP file of the profile in docs/format.md. After a failure it refuses everything,
/// until it could be rewound.
class SegmentWriter {
 public:
  static Result<std::unique_ptr<SegmentWriter>> create(FileSystem* files, const std::string& path,
                                                       SegmentOptions options);

  /// Appends a message to the open chunk; closes the chunk when it is full. `step` is recorded in
  /// the Seal; messages without a step pass has_step = false.
  Status write(const std::string& topic, const std::string& schema, std::string_view data,
               bool has_step, int64_t step, int64_t time_ns);
  /// Counts a message that could not be stored: the gap in the sequence numbers of its channel
  /// tells a reader.
  void pass_over(const std::string& topic, const std::string& schema);
  Status close_chunk();
  /// After a failure: gives up the open chunk and takes back what was written of it. The segment
  /// can be written to again. False: it cannot, and ends here.
  bool rewind();
  Status sync() { return file_->sync(); }
  /// Closes the chunk, writes summary and footer, syncs and closes the file.
  Status seal();

  bool chunk_is_empty() const { return chunk_messages_ == 0; }
  uint64_t open_messages() const { return chunk_messages_; }
  std::chrono::steady_clock::time_point chunk_opened() const { return chunk_opened_; }
  uint64_t bytes() const { return offset_; }
  /// Whether a reader can tell by a lock that this segment is being written.
  bool locked() const { return file_->locked(); }

 private:
  struct SchemaState {
    uint16_t id = 0;
    uint64_t in_chunk = 0;  ///< number of the chunk that last repeated its record
    std::string record;     ///< encoded Schema record
  };
  struct ChannelState {
    uint16_t id = 0;
    SchemaState* schema = nullptr;
    uint32_t sequence = 0;
    uint64_t messages = 0;
    uint64_t in_chunk = 0;
    std::string record;  ///< encoded Channel record
    std::vector<std::pair<uint64_t, uint64_t>>
        index;  ///< (log time, offset in the chunk) of the open chunk
  };
  struct ChunkFacts {
    uint64_t begin_time = 0, end_time = 0, offset = 0, length = 0, index_length = 0;
    uint64_t compressed = 0, uncompressed = 0;
    std::string compression;
    std::map<uint16_t, uint64_t> index_offsets;
    int64_t first_step = 0, last_step = -1;
  };
  struct AttachmentFacts {
    uint64_t offset = 0, length = 0, time = 0, size = 0;
    std::string name, media_type;
  };

  SegmentWriter(std::unique_ptr<WritableFile> file, SegmentOptions options)
      : file_(std::move(file)), options_(std::move(options)) {}
  Status append(std::string_view bytes);
  Status write_head();
  /// The attachments as they stand at `offset`, and where each of them is.
  std::string encode_attachments(uint64_t offset, std::vector<AttachmentFacts>* facts) const;
  ChannelState& channel(const std::string& topic, const std::string& schema);
  std::string summary() const;

  std::unique_ptr<WritableFile> file_;
  SegmentOptions options_;
  Status failure_;
  uint64_t offset_ = 0;
  bool sealed_ = false;
  uint64_t last_time_ = 0;

  std::map<std::string, SchemaState> schemas_;
  std::map<std::string, ChannelState> channels_;
  std::string chunk_;
  uint64_t chunk_number_ = 1;
  uint64_t chunk_messages_ = 0;
  uint64_t chunk_begin_time_ = 0;
  int64_t chunk_first_step_ = 0;
  int64_t chunk_last_step_ = -1;
  std::chrono::steady_clock::time_point chunk_opened_;
  uint64_t previous_seal_ = 0;
  uint64_t messages_ = 0;
  uint64_t begin_time_ = 0;
  std::vector<ChunkFacts> chunks_;
  std::vector<AttachmentFacts> attachment_facts_;
  uint64_t metadata_offset_ = 0;
  uint64_t metadata_length_ = 0;
};

}  // namespace tycho::trace
