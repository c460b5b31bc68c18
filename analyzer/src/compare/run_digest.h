#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/compare/step_grid.h"
#include "tycho/analyzer/engine.h"
#include "tycho/trace/noise_pool.h"

namespace tycho::analyzer {

/// What runs are laid over each other by.
enum class Alignment { kStep, kExamples, kTime };
const char* to_string(Alignment by);  ///< step, examples, time

/// Where a run stands: step, examples seen (steps that were not observed count with the batch of
/// the next one that was), seconds of wall time without the pauses of a resumed run. NaN: unknown.
struct Position {
  double step = kUnknown;
  double examples = kUnknown;
  double seconds = kUnknown;
  double by(Alignment alignment) const {
    return alignment == Alignment::kStep       ? step
           : alignment == Alignment::kExamples ? examples
                                               : seconds;
  }
};

/// The values of a statistic of the run within one bin of kFineGrid.
struct RunBin {
  size_t bin = 0;
  Position position;  ///< mean over the observations
  double mean = 0;    ///< of the finite values
  double square = 0;  ///< sum of squared deviations from the mean
  double min = 0;
  double max = 0;
  uint64_t count = 0;       ///< finite values
  uint64_t non_finite = 0;  ///< NaN or infinite ones
};

/// One layer's values within a bin.
struct LayerCell {
  double first = not_measured();  ///< finite
  double sum = 0;
  uint64_t count = 0;  ///< finite values
  double mean() const { return count > 0 ? sum / static_cast<double>(count) : kUnknown; }
};

/// The values of a statistic of all layers within one bin of kCoarseGrid.
struct LayerBin {
  size_t bin = 0;
  int64_t first_step = -1;  ///< at which the first values were measured
  Position position;        ///< mean over the observations
  uint64_t observations = 0;
  std::vector<LayerCell> cell;  ///< by layer id
};

/// What comparing runs needs to know of one of them. Its size depends on the number of layers and
/// statistics, not on the length of the run: series are kept in bins of a fixed grid. Statistics of
/// single parameters and lists are not kept.
struct RunDigest {
  std::string path;
  std::string name;  ///< for people: the run's name, else the path
  v1::RunDescription run;
  v1::ModelDescription model;
  v1::StatisticRegistry registry;
  v1::OptimizerSettings optimizer;       ///< the first recorded; empty: none
  uint64_t optimizer_changes = 0;        ///< times that settings were replaced by others
  double peak_learning_rate = kUnknown;  ///< of the first parameter group
  double batch_size = kUnknown;          ///< median over the bins
  /// Of the gradients at the end: what the run's report and its charts say.
  trace::PooledNoiseScale noise_scale;
  std::map<std::string, std::vector<RunBin>> run_series;      ///< by statistic, bins ascending
  std::map<std::string, std::vector<LayerBin>> layer_series;  ///< by statistic, bins ascending
  int64_t first_step = -1;
  int64_t last_step = -1;
  Position end;  ///< of the last step
  uint64_t frames = 0;
  bool being_written = false;       ///< it goes on: its writer is alive
  bool died = false;                ///< its writer died before it was closed
  std::vector<std::string> losses;  ///< what is missing, or may be, in words
  uint64_t bytes_lost = 0;          ///< that could not be read
  uint64_t messages_dropped = 0;
  std::vector<v1::Event> events;

  /// nullptr: never recorded.
  const std::vector<RunBin>* series(const std::string& statistic) const;
  const std::vector<LayerBin>* layers(const std::string& statistic) const;
  /// -1: no such layer.
  int layer_id(const std::string& layer_path) const;
};

/// Makes a digest of what an engine is fed. Attach it, feed the engine, take the digest.
class DigestBuilder {
 public:
  /// `engine` must outlive the feeding.
  explicit DigestBuilder(Engine* engine);
  ~DigestBuilder();

  /// Wall clock of the messages that follow are counted from here on; call after each message.
  void set_time(int64_t time_ns);
  /// The time until the next message was not spent training.
  void pause();
  /// Called with the number of frames now and then.
  void set_progress(std::function<void(uint64_t frames)> progress);

  /// After Engine::finish().
  RunDigest take();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Streams a run once.
Result<RunDigest> digest_run(const std::string& path,
                             const std::function<void(uint64_t frames)>& progress);

}  // namespace tycho::analyzer
