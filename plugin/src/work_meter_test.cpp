#include "work_meter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace tycho {
namespace {

// Until so much CPU time of this process went by.
void work(double seconds) {
  const double begin = process_cpu_seconds();
  while (process_cpu_seconds() - begin < seconds) {
  }
}

TEST(WorkMeter, TellsWorkFromSleepInCpuTime) {
  WorkMeter meter;
  {
    const WorkMeter::Stretch stretch(&meter, true);
    work(0.02);
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
  }
  const WorkMeter::Reading reading = meter.total();
  EXPECT_EQ(reading.stretches, 1U);
  EXPECT_GE(reading.wall, 0.06);
  EXPECT_GE(reading.cpu, 0.019);
  EXPECT_LE(reading.cpu, reading.wall - 0.035) << "sleep is no CPU time";
}

TEST(WorkMeter, ExtrapolatesCpuTimeFromASampleOfStretches) {
  WorkMeter meter;
  const double begin = process_cpu_seconds();
  for (int i = 0; i < 400; ++i) {
    const WorkMeter::Stretch stretch(&meter);
    work(1e-4);
    (void)meter.total();  // adapts the sample
  }
  const double all = process_cpu_seconds() - begin;
  const WorkMeter::Reading reading = meter.total();
  EXPECT_EQ(reading.stretches, 400U);
  // Wide, because other programs take the processor for some of the stretches.
  EXPECT_GT(reading.cpu, 0.25 * all);
  EXPECT_LT(reading.cpu, 4 * all);
}

TEST(WorkMeter, CountsNoMoreThanLibTorchsThreadsCanUse) {
  WorkMeter meter;
  meter.set_threads(2);
  std::thread others[3];
  {
    const WorkMeter::Stretch stretch(&meter, true);
    for (std::thread& other : others) other = std::thread([] { work(0.05); });
    for (std::thread& other : others) other.join();
  }
  const WorkMeter::Reading reading = meter.total();
  EXPECT_LE(reading.cpu, 2 * reading.wall * 1.0001);
  EXPECT_GT(reading.cpu, 0);
}

TEST(WorkMeter, WithoutAMeterNothingIsMeasured) {
  const WorkMeter::Stretch stretch(nullptr);
  WorkMeter meter;
  EXPECT_EQ(meter.total().stretches, 0U);
}

}  // namespace
}  // namespace tycho
