#include "cost_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace tycho::analyzer {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::Health health(double tycho, double wall, double tycho_cpu, double cpu) {
  v1::Health result;
  result.set_tycho_seconds(tycho);
  result.set_training_seconds(wall);
  result.set_tycho_cpu_seconds(tycho_cpu);
  result.set_process_cpu_seconds(cpu);
  return result;
}

TEST(CostText, TellsCpuAndWallTimeAsPartsOfTheWhole) {
  const std::string text = cost_text(health(1, 11, 2, 22));
  EXPECT_THAT(text, HasSubstr("2 s of 22 s of CPU time, 10 % more than the trainer alone"));
  EXPECT_THAT(text, HasSubstr("1 s of 11 s of wall time"));
  EXPECT_THAT(text, Not(HasSubstr("at least")));
}

TEST(CostText, CostsBeyondTheTrainersOwnAreTimesNotPercent) {
  EXPECT_THAT(cost_text(health(7, 8, 7, 8)), HasSubstr("8 times what the trainer alone takes"));
}

TEST(CostText, SaysAtLeastWhereMoreMayHaveBeenSlowedDown) {
  v1::Health lower = health(1, 11, 2, 22);
  lower.set_cost_is_lower_bound(true);
  EXPECT_THAT(cost_text(lower), HasSubstr("at least 2 s of 22 s of CPU time"));
  EXPECT_THAT(cost_text(lower), HasSubstr("at least 1 s of 11 s of wall time"));
}

TEST(CostText, NeverTellsMoreThanTheWhole) {
  // Traces of writers that did not count the time of the first step.
  EXPECT_THAT(cost_text(health(0.00767, 0, 0, 0)), HasSubstr("The trace does not record"));
  EXPECT_THAT(cost_text(health(1.06, 1, 0, 0)), HasSubstr("The trace does not record"));
  EXPECT_THAT(cost_text(health(0.1, 1, 0, 0)), HasSubstr("At least 0.1 s of 1 s"));
  EXPECT_THAT(cost_text(v1::Health()), HasSubstr("The trace does not record"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(cost_text(health(nan, nan, nan, nan)), HasSubstr("The trace does not record"));
}

}  // namespace
}  // namespace tycho::analyzer
