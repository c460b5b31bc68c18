#include "tycho/analyzer/verdict.h"

#include <gtest/gtest.h>

namespace tycho::analyzer {
namespace {

TEST(VerdictTest, NamesAreThoseOfTheContract) {
  EXPECT_STREQ(to_string(Verdict::kHolds), "HOLDS");
  EXPECT_STREQ(to_string(Verdict::kViolated), "VIOLATED");
  EXPECT_STREQ(to_string(Verdict::kNotApplicable), "NOT_APPLICABLE");
  EXPECT_STREQ(to_string(Verdict::kUnderpowered), "UNDERPOWERED");
  EXPECT_STREQ(to_string(Verdict::kNotYet), "NOT_YET");
  EXPECT_STREQ(to_string(Verdict::kNotMeasured), "NOT_MEASURED");
}

TEST(VerdictTest, ViolationsOfTheRunComeFirst) {
  EXPECT_GT(importance(Verdict::kViolated, true), importance(Verdict::kViolated, false));
  EXPECT_GT(importance(Verdict::kViolated, false), importance(Verdict::kHolds, true));
  EXPECT_GT(importance(Verdict::kHolds, true), importance(Verdict::kNotApplicable, true));
}

}  // namespace
}  // namespace tycho::analyzer
