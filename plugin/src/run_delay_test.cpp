#include "run_delay.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>
#include <vector>

namespace tycho {
namespace {

TEST(RunDelayTest, ReadsTheSecondNumber) {
  EXPECT_DOUBLE_EQ(RunDelay::parse("12345 2500000000 7\n"), 2.5);
  EXPECT_DOUBLE_EQ(RunDelay::parse("0 0 0\n"), 0);
}

TEST(RunDelayTest, WhatIsNoSuchTextIsUnknown) {
  for (const char* text : {"", "1", "1 ", "1 x 3", "1 -2 3", "one two three", "1 2", "1 2x 3",
                           "1 99999999999999999999999 3"}) {
    EXPECT_LT(RunDelay::parse(text), 0) << text;
  }
}

TEST(RunDelayTest, CountsTheTimeThatOthersHadTheCore) {
  double on_core = 0;  // 0 also where the kernel has the file and does not count
  std::ifstream("/proc/thread-self/schedstat") >> on_core;
  if (on_core == 0) {
    RunDelay unknown;
    EXPECT_EQ(unknown.take(), 0);
    EXPECT_EQ(unknown.take(), 0);
    return;
  }
  // Threads inherit the affinity: three others on the core that this one is on.
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i)
    others.emplace_back([&] {
      while (!stop) {
      }
    });
  RunDelay delay;
  EXPECT_EQ(delay.take(), 0);
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(400)) {
  }
  const double wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double taken = delay.take();
  stop = true;
  for (std::thread& other : others) other.join();
  EXPECT_GT(taken, 0.4 * wall);
  EXPECT_LE(taken, 1.02 * wall);
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

TEST(RunDelayTest, AnotherThreadBeginsAnew) {
  RunDelay delay;
  delay.take();
  std::thread([&] { EXPECT_EQ(delay.take(), 0); }).join();
  EXPECT_EQ(delay.take(), 0);
}

}  // namespace
}  // namespace tycho
