#include "work_meter.h"

#include <time.h>

#include <algorithm>

namespace tycho {
namespace {

constexpr double kClocksShare = 0.02;  // of the measured time
constexpr uint64_t kAlways = uint64_t{1} << 32;
constexpr uint64_t kFirstChance = kAlways / 8;

double seconds_of(clockid_t clock) {
  timespec now{};
  if (clock_gettime(clock, &now) != 0) return 0;
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// CPU time between two readings one after the other: what a measurement has too much. The least of
/// several, because some are interrupted.
double clock_cost(clockid_t clock) {
  double least = 1;
  for (int i = 0; i < 5; ++i) {
    const double before = seconds_of(clock);
    least = std::min(least, seconds_of(clock) - before);
  }
  return std::max(least, 0.0);
}

struct ClockCosts {
  double thread = clock_cost(CLOCK_THREAD_CPUTIME_ID);
  double process = clock_cost(CLOCK_PROCESS_CPUTIME_ID);
};

const ClockCosts& clock_costs() {
  static const ClockCosts costs;
  return costs;
}

}  // namespace

double process_cpu_seconds() { return seconds_of(CLOCK_PROCESS_CPUTIME_ID); }

WorkMeter::WorkMeter() : chance_(kFirstChance) { (void)clock_costs(); }

bool WorkMeter::samples() {
  const uint64_t chance = chance_.load(std::memory_order_relaxed);
  if (chance >= kAlways) return true;
  // Weyl's sequence: spread evenly, and in step with no loop of the trainer.
  const uint64_t ticket = lottery_.fetch_add(0x9E3779B97F4A7C15, std::memory_order_relaxed);
  return (ticket >> 32) < chance;
}

double WorkMeter::cpu_now() const {
  return seconds_of(threads_.load(std::memory_order_relaxed) == 1 ? CLOCK_THREAD_CPUTIME_ID
                                                                  : CLOCK_PROCESS_CPUTIME_ID);
}

void WorkMeter::add(Clock::time_point begin, bool exact, bool sampled, double cpu_begin) {
  const int64_t wall =
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
  wall_ns_.fetch_add(wall, std::memory_order_relaxed);
  stretches_.fetch_add(1, std::memory_order_relaxed);
  if (!sampled) return;
  const bool alone = threads_.load(std::memory_order_relaxed) == 1;
  const double reading = alone ? clock_costs().thread : clock_costs().process;
  const auto cpu = static_cast<int64_t>(1e9 * std::max(cpu_now() - cpu_begin - reading, 0.0));
  (exact ? exact_wall_ns_ : sampled_wall_ns_).fetch_add(wall, std::memory_order_relaxed);
  (exact ? exact_cpu_ns_ : sampled_cpu_ns_).fetch_add(cpu, std::memory_order_relaxed);
}

WorkMeter::Reading WorkMeter::total() {
  const auto wall = static_cast<double>(wall_ns_.load());
  const auto exact_wall = static_cast<double>(exact_wall_ns_.load());
  const auto exact_cpu = static_cast<double>(exact_cpu_ns_.load());
  const auto sampled_wall = static_cast<double>(sampled_wall_ns_.load());
  const auto sampled_cpu = static_cast<double>(sampled_cpu_ns_.load());
  const auto stretches = static_cast<double>(stretches_.load());
  const int threads = threads_.load();
  // The kernel brings the clocks of other threads up to date every few milliseconds only, so a
  // limit holds for sums.
  const double most = threads;
  const double sampled_ratio = sampled_wall > 0 ? std::min(sampled_cpu / sampled_wall, most) : 1;
  Reading result;
  result.wall = 1e-9 * wall;
  result.cpu = 1e-9 * (std::min(exact_cpu, most * exact_wall) +
                       std::max(wall - exact_wall, 0.0) * sampled_ratio);
  result.stretches = static_cast<uint64_t>(stretches);
  if (stretches > 0) {
    const double clocks =
        2e9 * (threads == 1 ? clock_costs().thread : clock_costs().process) * stretches;
    const double chance = clocks > 0 ? kClocksShare * wall / clocks : 1;
    chance_.store(static_cast<uint64_t>(std::min(chance, 1.0) * static_cast<double>(kAlways)));
  }
  return result;
}

}  // namespace tycho
