#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tycho/trace/run_reader.h"
#include "tycho/trace/run_writer.h"

namespace tycho::testing {

/// A directory that is gone when the test is over.
class ScratchDirectory {
 public:
  ScratchDirectory();
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  std::string path(const std::string& name) const { return (root_ / name).string(); }

 private:
  std::filesystem::path root_;
};

v1::RunDescription sample_run(const std::string& run_id);
v1::ModelDescription sample_model(int layers);
v1::StatisticRegistry sample_registry();
/// Values are a function of step, statistic and entity, so that a reader can check each of them.
v1::Record sample_record(int64_t step, int layers);
double sample_value(int64_t step, uint32_t statistic, uint32_t entity);
/// Writes steps [from, to), one record and now and then an event each.
void write_steps(trace::RunWriter* writer, int64_t from, int64_t to, int layers);

/// Keeps everything it is given.
struct Collector : trace::MessageHandler {
  bool on_segment(const trace::SegmentInfo& info, const v1::RunDescription& run,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override;
  bool on_record(const std::string& probe, const v1::Record& record, int64_t time_ns) override;
  bool on_event(const v1::Event& event, int64_t time_ns) override;
  bool on_health(const v1::Health& health, int64_t time_ns) override;
  bool on_optimizer(const v1::OptimizerSettings& settings, int64_t time_ns) override;
  bool on_structure(const v1::ModelStructure& structure, int64_t time_ns) override;
  bool on_finding(const v1::Finding& finding, int64_t time_ns) override;
  bool on_skipped(const trace::SkippedRegion& region) override;

  std::vector<v1::RunDescription> runs;
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  std::vector<std::pair<std::string, v1::Record>> records;
  std::vector<v1::Event> events;
  std::vector<v1::Health> healths;
  std::vector<v1::OptimizerSettings> optimizers;
  std::vector<v1::ModelStructure> structures;
  std::vector<v1::Finding> findings;
  std::vector<trace::SkippedRegion> skipped;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

}  // namespace tycho::testing
