#include "src/alerts/alert_watch.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/trace_samples.h"
#include "tycho/trace/run_writer.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;

constexpr uint64_t kAll = uint64_t{1} << 40;

std::unique_ptr<trace::RunWriter> open_run(const std::string& directory, bool resumed = false) {
  trace::RunWriterOptions options;
  options.directory = directory;
  v1::RunDescription description = sample_run("a");
  description.set_resumed(resumed);
  auto writer = trace::RunWriter::open(options, description, sample_model(2), sample_registry());
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  return std::move(writer).value();
}

void write_losses(trace::RunWriter* writer, int64_t from, int64_t to, double loss) {
  for (int64_t step = from; step < to; ++step) {
    v1::Record record;
    record.set_step(step);
    auto* column = record.add_column();
    column->set_scope(v1::SCOPE_RUN);
    column->add_value(loss / (1.0 + static_cast<double>(step)));
    writer->write("loss", record, 1'000'000'000 + step * 10'000'000);
  }
  EXPECT_TRUE(writer->flush().ok());
}

std::vector<std::string> look(AlertWatch* watch, FollowedRun* run) {
  while (run->poll(kAll)) {
  }
  run->judge();
  std::vector<std::string> codes;
  for (const Alert& alert : watch->look(*run)) codes.push_back(alert.code);
  return codes;
}

using Codes = std::vector<std::string>;

TEST(AlertWatch, TellsAnAlarmOnceWhileItLasts) {
  ScratchDirectory scratch;
  auto writer = open_run(scratch.path("run"));
  FollowedRun run(scratch.path("run"));
  AlertWatch watch;
  write_losses(writer.get(), 0, 20, 1);
  EXPECT_EQ(look(&watch, &run), Codes());
  write_losses(writer.get(), 20, 40, NAN);
  while (run.poll(kAll)) {
  }
  run.judge();
  const auto news = watch.look(run);
  ASSERT_EQ(news.size(), 1u);
  EXPECT_EQ(news[0].code, "loss_not_finite");
  EXPECT_EQ(news[0].severity, Severity::kAlarm);
  EXPECT_EQ(news[0].step, 20);
  EXPECT_EQ(news[0].state, "live");
  EXPECT_EQ(news[0].path, scratch.path("run"));
  EXPECT_GE(news[0].last_step, 38);
  EXPECT_TRUE(std::isnan(news[0].loss));
  EXPECT_FALSE(news[0].title.empty());
  write_losses(writer.get(), 40, 60, NAN);
  EXPECT_EQ(look(&watch, &run), Codes());
  EXPECT_TRUE(writer->close().ok());
  EXPECT_EQ(look(&watch, &run), Codes());
}

TEST(AlertWatch, TellsOfOldRunsOnlyWhereItIsAskedTo) {
  ScratchDirectory scratch;
  {
    auto writer = open_run(scratch.path("run"));
    write_losses(writer.get(), 0, 40, NAN);
    EXPECT_TRUE(writer->close().ok());
  }
  FollowedRun run(scratch.path("run"));
  AlertWatch asked(Severity::kAlarm, true);
  AlertWatch not_asked(Severity::kAlarm, false);
  EXPECT_EQ(look(&asked, &run), Codes{"loss_not_finite"});
  EXPECT_EQ(look(&not_asked, &run), Codes());
  // Resumed, it tells what comes, and not what was known.
  auto writer = open_run(scratch.path("run"), true);
  write_losses(writer.get(), 40, 60, NAN);
  EXPECT_EQ(look(&not_asked, &run), Codes());
  EXPECT_EQ(run.state(), trace::RunState::kLive);
}

TEST(AlertWatch, TellsThatAWriterDied) {
  ScratchDirectory scratch;
  auto writer = open_run(scratch.path("run"));
  FollowedRun run(scratch.path("run"));
  AlertWatch watch;
  AlertWatch late(Severity::kAlarm, false);
  write_losses(writer.get(), 0, 20, 1);
  EXPECT_EQ(look(&watch, &run), Codes());
  // As a process that is killed: its lock goes, and nothing is closed.
  ASSERT_EQ(run.state(), trace::RunState::kLive);
  EXPECT_TRUE(writer->close().ok());
  const std::string segment = scratch.path("run/000000.mcap");
  const std::string bytes = read_file(segment);
  write_file(segment, bytes.substr(0, bytes.size() - 200));
  const auto news = look(&watch, &run);
  ASSERT_EQ(run.state(), trace::RunState::kDied) << run.why();
  EXPECT_EQ(news, Codes{"run_died"});
  EXPECT_EQ(look(&watch, &run), Codes());
  EXPECT_EQ(look(&late, &run), Codes());
}

TEST(AlertWatch, LeavesOutWhatIsMilder) {
  ScratchDirectory scratch;
  auto writer = open_run(scratch.path("run"));
  write_losses(writer.get(), 0, 20, 1);
  v1::Event event;
  event.set_step(19);
  event.set_kind(v1::Event::FAULT);
  event.set_code("probe_failed");
  writer->write(event, 2'000'000'000);
  write_losses(writer.get(), 20, 22, 1);
  FollowedRun run(scratch.path("run"));
  AlertWatch alarms(Severity::kAlarm);
  AlertWatch warnings(Severity::kWarning);
  EXPECT_EQ(look(&alarms, &run), Codes());
  EXPECT_EQ(look(&warnings, &run), Codes{"instrument_failed"});
}

}  // namespace
}  // namespace tycho::analyzer
