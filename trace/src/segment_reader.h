#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mcap.h"
#include "tycho/trace/file_system.h"
#include "tycho/trace/run_reader.h"

struct ZSTD_DCtx_s;

namespace tycho::trace {

/// Walks one MCAP file of the profile. Damage is skipped to the next intact chunk (docs/format.md
/// 5).
class SegmentReader {
 public:
  struct Message {
    const std::string* topic;  ///< for example /probe/loss
    std::string_view data;
    int64_t publish_time;
  };
  struct Callbacks {
    std::function<bool(const Message&)> on_message;  ///< false: stop
    std::function<void(uint64_t begin, uint64_t end, std::string why)> on_skipped;
    std::function<void(uint64_t messages)>
        on_gap;  ///< sequence numbers prove that messages are missing
    /// Whether a chunk that is known to hold exactly these steps is wanted.
    std::function<bool(int64_t first_step, int64_t last_step)> wanted;
  };

  /// Fails unless the file exists and either starts with MCAP's magic or holds an intact Seal.
  static Result<std::unique_ptr<SegmentReader>> open(const std::string& path);
  ~SegmentReader();

  /// Attachments by name; from the head, or from a repetition where the head is damaged.
  const std::map<std::string, std::string>& attachments();
  Status walk(const Callbacks& callbacks);

  uint64_t size() const { return file_->size(); }
  bool sealed() const { return sealed_; }
  uint64_t chunks() const { return chunks_; }
  const std::string& compression() const { return compression_; }

 private:
  struct RecordHead {
    uint8_t opcode = 0;
    uint64_t length = 0;
  };
  SegmentReader(std::unique_ptr<ReadableFile> file, std::string path);
  bool read_head(uint64_t offset, RecordHead* head) const;
  uint64_t find_seal(uint64_t from, uint64_t until, mcap::Seal* seal, uint64_t* seal_offset) const;
  bool decode_chunk(std::string_view content, std::string_view* messages, std::string* why);
  bool deliver(std::string_view records, const Callbacks& callbacks);
  void load_step_index();

  std::unique_ptr<ReadableFile> file_;
  std::string path_;
  bool sealed_ = false;
  uint64_t chunks_ = 0;
  std::string compression_;
  bool attachments_read_ = false;
  std::map<std::string, std::string> attachments_;
  std::map<uint64_t, std::pair<int64_t, int64_t>> step_index_;  ///< chunk offset -> steps
  std::vector<std::string> topics_;                             ///< by channel id; empty: unknown
  std::vector<int64_t> next_sequence_;  ///< by channel id; -1: none read yet
  std::string stored_;
  std::string chunk_;
  ZSTD_DCtx_s* decompressor_ = nullptr;
};

}  // namespace tycho::trace
