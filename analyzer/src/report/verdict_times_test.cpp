#include "src/report/verdict_times.h"

#include <gtest/gtest.h>

#include <string>

namespace tycho::analyzer {
namespace {

v1::Finding said(int64_t step, Verdict verdict, const std::string& law = "edge_of_stability",
                 const std::string& scope = "run") {
  LiveFinding finding;
  finding.law = law;
  finding.scope = scope;
  finding.verdict = verdict;
  finding.step = step;
  return to_message(finding);
}

Finding judged(Verdict verdict, const std::string& law = "edge_of_stability",
               const std::string& scope = "run") {
  Finding finding;
  finding.law = law;
  finding.scope = scope;
  finding.verdict = verdict;
  return finding;
}

TEST(VerdictTimes, AreOfTheLastChange) {
  VerdictTimes times;
  EXPECT_FALSE(times.since(judged(Verdict::kHolds)));
  EXPECT_EQ(times.text(judged(Verdict::kHolds)), "");
  times.observe(said(50, Verdict::kUnderpowered));
  times.observe(said(100, Verdict::kHolds));
  times.observe(said(120, Verdict::kViolated, "symmetry"));
  times.observe(said(130, Verdict::kHolds, "edge_of_stability", "layer:1"));
  EXPECT_EQ(times.since(judged(Verdict::kHolds)), 100);
  EXPECT_EQ(times.text(judged(Verdict::kHolds)), ", known since step 100");
  EXPECT_EQ(times.since(judged(Verdict::kHolds, "edge_of_stability", "layer:1")), 130);
  EXPECT_EQ(times.since(judged(Verdict::kViolated, "symmetry")), 120);
  times.observe(said(200, Verdict::kViolated));
  times.observe(said(300, Verdict::kHolds));
  EXPECT_EQ(times.since(judged(Verdict::kHolds)), 300);
}

TEST(VerdictTimes, SayNothingOfAVerdictThatTheTrainerDidNotReach) {
  VerdictTimes times;
  times.observe(said(100, Verdict::kHolds));
  for (const Verdict other : {Verdict::kViolated, Verdict::kUnderpowered, Verdict::kNotYet,
                              Verdict::kNotMeasured, Verdict::kNotApplicable})
    EXPECT_FALSE(times.since(judged(other)));
  EXPECT_FALSE(times.since(judged(Verdict::kHolds, "symmetry")));
  EXPECT_FALSE(times.since(judged(Verdict::kHolds, "edge_of_stability", "layer:1")));
}

TEST(VerdictTimes, OutliveASessionThatIsResumed) {
  VerdictTimes times;
  times.observe(said(100, Verdict::kHolds));
  times.observe(said(700, Verdict::kHolds));  // By a judge that began anew.
  EXPECT_EQ(times.since(judged(Verdict::kHolds)), 100);
}

TEST(VerdictTimes, LeaveAlarmsOut) {
  LiveFinding alarm;
  alarm.kind = LiveFinding::Kind::kAlarm;
  alarm.law = "loss_diverged";
  alarm.scope = "run";
  alarm.verdict = Verdict::kViolated;
  alarm.step = 10;
  VerdictTimes times;
  times.observe(to_message(alarm));
  EXPECT_FALSE(times.since(judged(Verdict::kViolated, "loss_diverged")));
}

TEST(VerdictTimes, AreBounded) {
  VerdictTimes times;
  for (size_t i = 0; i < VerdictTimes::kMost + 10; ++i)
    times.observe(said(1, Verdict::kHolds, "law", std::to_string(i)));
  EXPECT_TRUE(times.since(judged(Verdict::kHolds, "law", "0")));
  EXPECT_FALSE(times.since(judged(Verdict::kHolds, "law", std::to_string(VerdictTimes::kMost))));
}

}  // namespace
}  // namespace tycho::analyzer
