#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace tycho {

/// Seconds of CPU time that all threads of the process have used.
double process_cpu_seconds();

/// Adds up the time of many short stretches of work, from any thread: the wall time of all of them,
/// and the CPU time of a sample. A wall clock costs tens of nanoseconds, a CPU clock a system call
/// (0.2 to 10 us), which a stretch of a few microseconds cannot afford.
///
/// CPU time is that of the process while the stretch runs, so that LibTorch's worker threads are
/// in it; with one thread of LibTorch it is that of the calling thread. Threads of the trainer's
/// own that run at the same time (data loaders) are in it as far as LibTorch has threads for.
class WorkMeter {
 public:
  using Clock = std::chrono::steady_clock;

  /// Wall and CPU seconds of some stretches; their number.
  struct Reading {
    double wall = 0;
    double cpu = 0;
    uint64_t stretches = 0;
  };

  /// One stretch, from its construction to its destruction. With nullptr nothing is measured.
  class Stretch {
   public:
    /// `exact`: its CPU time is measured whatever the sample.
    explicit Stretch(WorkMeter* meter, bool exact = false)
        : meter_(meter), exact_(exact), sampled_(meter != nullptr && (exact || meter->samples())) {
      if (sampled_) cpu_begin_ = meter_->cpu_now();
      if (meter_ != nullptr) begin_ = Clock::now();
    }
    ~Stretch() {
      if (meter_ != nullptr) meter_->add(begin_, exact_, sampled_, cpu_begin_);
    }
    Stretch(const Stretch&) = delete;
    Stretch& operator=(const Stretch&) = delete;

   private:
    WorkMeter* meter_;
    bool exact_;
    bool sampled_;
    double cpu_begin_ = 0;
    Clock::time_point begin_;
  };

  WorkMeter();

  /// LibTorch's threads, from now on.
  void set_threads(int threads) { threads_.store(threads, std::memory_order_relaxed); }
  /// All so far, the CPU time of stretches that are not exact extrapolated from the sample. Adapts
  /// the sample, so that its clocks take about a fiftieth of the time that is measured. Of one
  /// thread.
  Reading total();

 private:
  friend class Stretch;
  bool samples();
  double cpu_now() const;
  void add(Clock::time_point begin, bool exact, bool sampled, double cpu_begin);

  std::atomic<int64_t> wall_ns_{0};
  std::atomic<int64_t> exact_wall_ns_{0};
  std::atomic<int64_t> exact_cpu_ns_{0};
  std::atomic<int64_t> sampled_wall_ns_{0};
  std::atomic<int64_t> sampled_cpu_ns_{0};
  std::atomic<uint64_t> stretches_{0};
  std::atomic<uint64_t> lottery_{0};
  std::atomic<uint64_t> chance_;  // of 2^32
  std::atomic<int> threads_{1};
};

}  // namespace tycho
