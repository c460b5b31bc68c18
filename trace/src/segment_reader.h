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
  /// Metadata "run" of the head; empty where it is damaged.
  const std::map<std::string, std::string>& run_metadata();
  /// Hands over every message in order. Time and memory are bounded by the size of the file: each
  /// iteration goes forward, and what chunks may decompress to is limited (mcap.h).
  Status walk(const Callbacks& callbacks);

  /// The next advance() begins at the beginning.
  void rewind();
  /// Goes on where the last advance() ended, with the same callbacks, and stops behind the record
  /// with which `most_bytes` were passed. Not to be called after a callback wanted to stop.
  /// `more_to_come`: the file may still grow, so what cannot be read at its end is left for the
  /// next call (position()); otherwise it is given to on_skipped.
  void advance(const Callbacks& callbacks, bool more_to_come, uint64_t most_bytes);
  /// Sees what was appended, and lock and footer as they are now. Fails with kNotFound where the
  /// file is gone or another one has its name, and with kCorrupt where what was passed is no longer
  /// there: the writer took it back, or another one overwrote it. A reader that failed is to be
  /// opened anew.
  Status refresh();
  uint64_t position() const { return at_; }  ///< everything before was passed
  /// Why what stands at position() could not be read; empty where it was not tried.
  const std::string& tail_why() const { return tail_why_; }

  uint64_t size() const { return file_->size(); }
  FileIdentity identity() const { return file_->identity(); }
  bool sealed() const { return sealed_; }
  /// Whether a writer held the file's lock when it was opened.
  bool locked() const { return file_->locked(); }
  uint64_t chunks() const { return chunks_; }
  const std::string& compression() const { return compression_; }

 private:
  struct RecordHead {
    uint8_t opcode = 0;
    uint64_t length = 0;
  };
  SegmentReader(std::unique_ptr<ReadableFile> file, std::string path);
  /// What is known on the way through the file.
  struct Walk {
    const Callbacks* callbacks = nullptr;
    uint64_t allowed_size = 0;  ///< the file's size when the next two were computed last
    uint64_t passed_to = 0;   ///< chunks that begin before were delivered, not wanted, or given up
    uint64_t bytes_left = 0;  ///< that chunks may still decompress to
    uint64_t messages_left = 0;  ///< that may still be delivered
    bool more_to_come = false;
    bool counts_gaps = true;
    bool stopped = false;
  };
  void look_at_end();
  void remember_end();
  bool starts_with_magic() const;
  bool read_head(uint64_t offset, RecordHead* head) const;
  uint64_t find_seal(uint64_t from, uint64_t until, mcap::Seal* seal, uint64_t* seal_offset) const;
  uint64_t take_record(uint64_t at, Walk* walk, std::string* why);
  uint64_t take_chunk(uint64_t at, const RecordHead& head, Walk* walk, std::string* why);
  uint64_t take_seal(uint64_t at, const RecordHead& head, Walk* walk, std::string* why);
  uint64_t resynchronise(uint64_t at, const std::string& why, Walk* walk);
  void take_sealed_chunk(const mcap::Seal& seal, uint64_t seal_offset, uint64_t seal_end,
                         uint64_t damaged_from, const std::string& why, Walk* walk);
  bool read_content(uint64_t at, const RecordHead& head, uint64_t limit);
  bool decode_chunk(std::string_view content, Walk* walk, std::string_view* messages,
                    std::string* why);
  bool deliver(std::string_view records, Walk* walk);
  void take_message(std::string_view record, Walk* walk);
  void read_head_records();
  void load_step_index();

  std::unique_ptr<ReadableFile> file_;
  std::string path_;
  bool sealed_ = false;
  uint64_t at_ = 0;
  Walk walk_;
  std::string tail_why_;
  std::string read_last_;  ///< the last bytes before at_, by which they are recognised
  uint64_t chunks_ = 0;
  std::string compression_;
  bool head_read_ = false;
  std::map<std::string, std::string> attachments_;
  std::map<std::string, std::string> run_metadata_;
  std::map<uint64_t, std::pair<int64_t, int64_t>> step_index_;  ///< chunk offset -> steps
  std::vector<std::string> topics_;                             ///< by channel id; empty: unknown
  std::vector<int64_t> next_sequence_;  ///< by channel id; -1: none read yet
  std::string stored_;
  std::string chunk_;
  ZSTD_DCtx_s* decompressor_ = nullptr;
};

}  // namespace tycho::trace
