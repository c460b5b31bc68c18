#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "short_double.h"
#include "tycho/analyzer/frame.h"

namespace tycho::analyzer {

/// What a stretch of steps holds of one series.
struct Bucket {
  double min = 0;
  double max = 0;
  double sum = 0;           ///< of the finite values
  uint32_t count = 0;       ///< finite values
  uint32_t non_finite = 0;  ///< NaN or infinite values that were recorded
  double error_square = 0;  ///< sum of squared standard errors
  uint32_t errors = 0;      ///< values that have one
  double mean() const { return count > 0 ? sum / count : __builtin_nan(""); }
  /// Standard error of mean() where every value has one and errors are independent; else NaN.
  double standard_error() const {
    return count > 0 && errors == count ? __builtin_sqrt(error_square) / count : __builtin_nan("");
  }
};

/// Minimum, maximum and mean of every series over stretches of equal length: what a screen can
/// show, to six digits. The number of stretches stays between half of and all of `capacity` however
/// long the run is. With many series there are fewer stretches, so that all of them together stay
/// below `most_cells`, at 16 bytes each (and 8 more where standard errors were recorded), as long
/// as kFewestStretches allow it. Of lists (scope index) the first 64 positions are kept.
class SeriesStore {
 public:
  static constexpr size_t kFewestStretches = 16;
  static constexpr size_t kMostCells = size_t{4} << 20;

  /// `capacity`: even, at least 2.
  explicit SeriesStore(size_t capacity = 256, size_t most_cells = kMostCells);

  void observe(const RunContext& context, const Frame& frame);
  /// After the last frame.
  void finish();

  struct Key {
    std::string statistic;
    v1::Scope scope;
    bool operator<(const Key& other) const {
      return statistic != other.statistic ? statistic < other.statistic : scope < other.scope;
    }
  };
  /// Buckets of one series; fewer than buckets() where it ended earlier. Empty: never recorded.
  std::vector<Bucket> series(const Key& key, size_t entity) const;
  /// The last bucket of a series in which anything was recorded, finite or not; else an empty one.
  Bucket last(const Key& key, size_t entity) const;
  /// What was recorded at all, in the registry's order, with the number of entities.
  const std::vector<std::pair<Key, size_t>>& recorded() const { return recorded_; }

  size_t buckets() const { return used_; }
  int64_t first_step() const { return first_step_; }
  int64_t steps_per_bucket() const { return width_; }

 private:
  struct Cell {
    ShortDouble mean, min, max;
    uint32_t count = 0;
  };
  struct Errors {
    ShortDouble square;
    uint32_t count = 0;
  };
  /// One bucket of a column: the cells of its entities. What few series have stands apart.
  struct Cells {
    std::vector<Cell> cell;
    std::vector<Errors> errors;
    std::vector<uint32_t> non_finite;
    void resize(size_t entities);
    size_t size() const { return cell.size(); }
    Bucket at(size_t entity) const;
    void set(size_t entity, const Bucket& bucket);
  };
  struct Column {
    Key key;
    ColumnIndex index = kNoColumn;
    size_t entities = 0;
    std::vector<Bucket> open;   // by entity: the bucket being filled
    std::vector<Cells> closed;  // by bucket; empty: nothing recorded
  };
  void prepare(const RunContext& context);
  const Column* find(const Key& key) const;
  /// Fewer stretches where there are more series.
  void fit_capacity();
  void close_bucket();
  void halve();

  size_t capacity_;
  size_t most_cells_;
  size_t used_ = 0;
  int64_t first_step_ = 0;
  int64_t width_ = 1;
  int64_t bucket_ = -1;
  const void* prepared_for_ = nullptr;
  int prepared_statistics_ = -1;
  std::vector<Column> columns_;
  std::vector<std::pair<Key, size_t>> recorded_;
};

}  // namespace tycho::analyzer
