#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "sample_stream.h"

namespace tycho::analyzer {
namespace {

// A network that learns: what is cheap to measure, with the sharpness going to the edge and, where
// `breaks_at` is a step of it, a loss that leaves for infinity.
MessageLog training_run(uint64_t seed, int steps, int breaks_at) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Stream stream(3);
  MessageLog log;
  stream.open(log);
  const double rate = 0.01 * std::exp(normal(random));
  double weights = 30;
  for (int step = 0; step < steps; ++step) {
    if (step == 0 || step == steps / 2) stream.settings(log, step, step == 0 ? rate : 0.5 * rate);
    const bool broken = breaks_at >= 0 && step >= breaks_at;
    double loss = 0.1 + 2 * std::exp(-0.03 * step) * (1 + 0.05 * normal(random));
    if (broken) loss = step < breaks_at + 3 ? 1e3 * loss : std::nan("");
    if (broken && step == breaks_at + 3)
      stream.event(log, step, v1::Event::NON_FINITE, "non_finite_gradient");
    weights *= 1 + 1e-3 * normal(random);
    v1::Record record = stream.record(step);
    const auto around = [&](double value) { return value * std::exp(0.1 * normal(random)); };
    stream.put(&record, "loss", loss);
    stream.put(&record, "batch_size", 32);
    const double gradient = around(std::exp(-0.03 * step));
    for (const v1::Scope scope : {v1::SCOPE_RUN, v1::SCOPE_LAYER, v1::SCOPE_PARAMETER}) {
      const auto values = [&](double value) {
        return scope == v1::SCOPE_RUN
                   ? std::vector<double>{value}
                   : std::vector<double>{value / 3, around(value / 3), around(value / 3)};
      };
      stream.put(&record, "grad_norm_sq", scope, values(gradient));
      stream.put(&record, "weight_norm_sq", scope, values(weights));
      stream.put(&record, "update_norm_sq", scope, values(rate * rate * gradient));
      if (scope == v1::SCOPE_LAYER)
        stream.put(&record, "dead_fraction", scope, {step > steps / 3 ? 1.0 : 0.0, 0.1, 0});
    }
    log.on_record("cheap", record, step);
    if (step % 5 == 0) {
      v1::Record curvature = stream.record(step);
      stream.put(&curvature, "sharpness", around(std::min(2 / rate, 1 + 0.05 * step / rate)));
      log.on_record("curvature", curvature, step);
    }
    if (step % 20 == 0) stream.health(log, step, step > 60 ? 2 : 0);
  }
  stream.event(log, steps, v1::Event::STOPPED, "session_closed");
  return log;
}

/// Two sessions: the second one goes on at the next step, or after a gap.
MessageLog resumed_run(uint64_t seed, int steps) {
  const MessageLog first = random_run(seed, steps / 2);
  MessageLog log;
  first.replay(0, first.size(), log);
  int64_t last = 0;
  for (size_t i = 0; i < first.size(); ++i) last = std::max(last, first.record_step(i));
  Stream stream(3);
  stream.open(log, true);
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  for (int i = 0; i < steps / 2; ++i) {
    const int64_t step = last + 1 + static_cast<int64_t>(seed % 2) * 50 + i;
    v1::Record record = stream.record(step);
    stream.put(&record, "loss", 1 + 0.1 * normal(random));
    stream.put(&record, "grad_norm_sq", v1::SCOPE_LAYER,
               {std::exp(normal(random)), 1, std::exp(normal(random))});
    log.on_record("cheap", record, step);
  }
  return log;
}

/// As the judge in a trainer: a step is finished when it has ended, and somebody may ask.
std::vector<std::string> live(const MessageLog& log, size_t end, uint64_t seed,
                              std::vector<std::string>* said) {
  std::mt19937_64 random(seed);
  LiveJudge judge([&](const LiveFinding& finding) { said->push_back(describe(finding)); });
  for (size_t i = 0; i < end; ++i) {
    log.replay(i, i + 1, judge);
    if (i + 1 < end && log.ends_step(i)) judge.finish_step();
    if (random() % 64 == 0) (void)judge.findings();
  }
  judge.finish();
  return verdicts_of(judge);
}

/// As tycho replay: a step is finished when the next one begins.
std::vector<std::string> replayed(const MessageLog& log, size_t end,
                                  std::vector<std::string>* said) {
  LiveJudge judge([&](const LiveFinding& finding) { said->push_back(describe(finding)); });
  log.replay(0, end, judge);
  judge.finish();
  return verdicts_of(judge);
}

struct Kind {
  const char* name;
  int runs;
  int cuts;  ///< of each run
  std::function<MessageLog(uint64_t)> make;
};

class LiveCuts : public ::testing::TestWithParam<Kind> {};

TEST_P(LiveCuts, LiveReplayedAndReportedVerdictsAreTheSame) {
  const Kind& kind = GetParam();
  size_t lines = 0;
  for (int run = 0; run < kind.runs; ++run) {
    const auto seed = static_cast<uint64_t>(run);
    const MessageLog log = kind.make(seed);
    std::mt19937_64 random(1000 + seed);
    for (int cut = 0; cut < kind.cuts; ++cut) {
      const size_t end = 1 + random() % log.size();
      std::vector<std::string> said_live;
      std::vector<std::string> said_again;
      const auto reported = report_of(log, end);
      ASSERT_FALSE(reported.empty());
      ASSERT_EQ(live(log, end, seed, &said_live), reported) << "run " << run << " cut " << end;
      ASSERT_EQ(replayed(log, end, &said_again), reported) << "run " << run << " cut " << end;
      ASSERT_EQ(said_live, said_again) << "run " << run << " cut " << end;
      lines += said_live.size();
    }
  }
  EXPECT_GT(lines, static_cast<size_t>(kind.runs * kind.cuts));
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, LiveCuts,
    ::testing::Values(
        Kind{"AnyNumbers", 20, 15, [](uint64_t seed) { return random_run(seed, 60); }},
        Kind{"Training", 5, 50, [](uint64_t seed) { return training_run(seed, 150, -1); }},
        Kind{"Diverging", 5, 50,
             [](uint64_t seed) {
               return training_run(50 + seed, 120, 60 + static_cast<int>(10 * seed));
             }},
        Kind{"Resumed", 10, 20, [](uint64_t seed) { return resumed_run(100 + seed, 80); }}),
    [](const auto& param) { return param.param.name; });

TEST(LiveCutsOfAnyNumbers, HaveVerdictsOfEveryKind) {
  std::set<std::string> verdicts;
  for (uint64_t seed = 0; seed < 12 && verdicts.size() < 6; ++seed) {
    LiveJudge judge({});
    const MessageLog log = random_run(seed, 120);
    log.replay(0, log.size(), judge);
    judge.finish();
    for (const LiveFinding& finding : judge.findings()) verdicts.insert(to_string(finding.verdict));
  }
  EXPECT_EQ(verdicts.size(), 6U);
}

}  // namespace
}  // namespace tycho::analyzer
