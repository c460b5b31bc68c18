#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "src/serve/access.h"
#include "src/serve/find_runs.h"
#include "src/serve/metrics.h"
#include "src/serve/pages.h"
#include "src/serve/run_catalog.h"
#include "src/serve/sample_runs.h"
#include "tests/support/trace_samples.h"

namespace tycho::analyzer {
namespace {

using namespace tycho::testing;
using std::chrono::milliseconds;
namespace fs = std::filesystem;

std::set<std::string> names(const FoundRuns& found) {
  std::set<std::string> result;
  for (const auto& [name, directory] : found.directories) result.insert(name);
  return result;
}

TEST(FindRuns, NamesThemByTheirPath) {
  ScratchDirectory scratch;
  write_run(scratch.path("runs/a"), "a");
  write_run(scratch.path("runs/sweep/lr 1"), "b");
  write_run(scratch.path("runs/.hidden/c"), "c");
  write_run(scratch.path("other/a"), "d");
  EXPECT_EQ(names(find_runs({scratch.path("runs")})), (std::set<std::string>{"a", "sweep/lr 1"}));
  EXPECT_EQ(names(find_runs({scratch.path("runs"), scratch.path("other")})),
            (std::set<std::string>{"runs/a", "runs/sweep/lr 1", "other/a"}));
  EXPECT_EQ(names(find_runs({scratch.path("runs/a")})), (std::set<std::string>{"a"}));
  EXPECT_EQ(names(find_runs({scratch.path("runs/a"), scratch.path("other/a")})),
            (std::set<std::string>{"a", "a~2"}));
  EXPECT_TRUE(names(find_runs({scratch.path("nothing")})).empty());
}

TEST(FindRuns, FollowsNoLinks) {
  ScratchDirectory scratch;
  write_run(scratch.path("outside/secret"), "s");
  write_run(scratch.path("runs/a"), "a");
  fs::create_directory_symlink(scratch.path("outside"), scratch.path("runs/link"));
  fs::create_directory_symlink(scratch.path("outside/secret"), scratch.path("runs/run"));
  fs::create_directory_symlink(scratch.path("runs"), scratch.path("runs/loop"));
  fs::create_directories(scratch.path("runs/segment"));
  fs::create_symlink(scratch.path("outside/secret/000000.mcap"),
                     scratch.path("runs/segment/000000.mcap"));
  EXPECT_EQ(names(find_runs({scratch.path("runs")})), (std::set<std::string>{"a"}));
  // What was asked for may be a link.
  fs::create_directory_symlink(scratch.path("runs"), scratch.path("asked"));
  EXPECT_EQ(names(find_runs({scratch.path("asked")})), (std::set<std::string>{"a"}));
}

TEST(Access, TakesTheTokenFromWhereverItIsShown) {
  const std::string token = "abcdefghijklmnop";
  const Access access(token, false);
  EXPECT_TRUE(access.is_allowed("Bearer " + token, "", ""));
  EXPECT_TRUE(access.is_allowed("", "x=1; tycho_token=" + token + "; y=2", ""));
  EXPECT_TRUE(access.is_allowed("", "", token));
  EXPECT_FALSE(access.is_allowed("", "", ""));
  EXPECT_FALSE(access.is_allowed(token, "", ""));
  EXPECT_FALSE(access.is_allowed("Bearer ", "tycho_token=", ""));
  EXPECT_FALSE(access.is_allowed("Bearer " + token + "q", "tycho_token=" + token.substr(1), "x"));
  EXPECT_TRUE(Access("", true).is_allowed("", "", ""));
}

TEST(Access, ComparesSecretsWhole) {
  EXPECT_TRUE(same_secret("secret", "secret"));
  EXPECT_FALSE(same_secret("secret", "secreT"));
  EXPECT_FALSE(same_secret("secret", "secretsecret"));
  EXPECT_FALSE(same_secret("secret", ""));
  EXPECT_FALSE(same_secret("", ""));
  EXPECT_TRUE(is_good_token("abcDEF0123456789"));
  EXPECT_FALSE(is_good_token("short"));
  EXPECT_FALSE(is_good_token("abcDEF0123456789; Path=/"));
}

TEST(Access, KnowsItsOwnHost) {
  const Access access("", true);
  for (const char* host : {"localhost", "localhost:7117", "127.0.0.1:80", "[::1]:7117", "::1"})
    EXPECT_TRUE(access.is_own_host(host)) << host;
  for (const char* host : {"", "evil.example", "evil.example:7117", "127.evil.example:7117",
                           "127.0.0.1.evil.example", "localhost.evil.example"})
    EXPECT_FALSE(access.is_own_host(host)) << host;
  EXPECT_FALSE(is_loopback("0.0.0.0"));
  EXPECT_FALSE(is_loopback("::"));
}

TEST(RunPage, SplitsAReportIntoAllItsParts) {
  ScratchDirectory scratch;
  write_run(scratch.path("a"), "a");
  const auto report = read_report(scratch.path("a"), nullptr);
  ASSERT_TRUE(report.ok());
  const RunPage page = make_page(report.value());
  ASSERT_GT(page.parts.size(), 6u);
  EXPECT_EQ(page.parts.front().rfind("<header", 0), 0u);
  EXPECT_EQ(page.parts.back().rfind("<details", 0), 0u);
  // Nothing but white space stands between them.
  std::string main = page.html.substr(page.html.find("<main>") + 6);
  main = main.substr(0, main.find("</main>"));
  for (const std::string& part : page.parts) {
    const size_t at = main.find(part);
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(main.find_first_not_of(" \n"), at);
    main = main.substr(at + part.size());
  }
  EXPECT_EQ(main.find_first_not_of(" \n"), std::string::npos) << main;
}

// What a browser does with the changes of series (page.js), here.
nlohmann::json applied(nlohmann::json view, const nlohmann::json& changes) {
  for (const auto& [key, value] : changes.items()) {
    if (key != "series") view[key] = value;
  }
  if (!changes.contains("series")) return view;
  for (const auto& entry : changes["series"]) {
    if (entry.contains("rest"))
      view["series"][entry["index"].get<size_t>()]["rest"] = entry["rest"];
    if (!entry.contains("entities")) continue;
    for (const auto& [number, arrays] : entry["entities"].items()) {
      auto& entity = view["series"][entry["index"].get<size_t>()]["entities"][std::stoul(number)];
      for (const auto& [key, array] : arrays.items()) {
        if (array.is_null()) {
          entity.erase(key);
          continue;
        }
        auto& list = entity[key];
        if (list.is_null()) list = nlohmann::json::array();
        while (list.size() > array["from"].get<size_t>()) list.erase(list.size() - 1);
        for (const auto& value : array["values"]) list.push_back(value);
      }
    }
  }
  return view;
}

TEST(RunPage, ChangesMakeOnePageOfTheOther) {
  ScratchDirectory scratch;
  auto writer = open_run(scratch.path("a"), "a");
  FollowedRun run(scratch.path("a"));
  std::unique_ptr<RunPage> before;
  nlohmann::json shown;
  size_t appended = 0;
  for (int64_t step = 0; step < 1200; step += 40) {
    write_losses(writer.get(), step, step + 40);
    while (run.poll(1 << 20)) {
    }
    run.judge();
    auto after = std::make_unique<RunPage>(make_page(run.report()));
    after->version = static_cast<uint64_t>(step) + 1;
    const nlohmann::json changes = page_changes(before.get(), *after);
    ASSERT_TRUE(changes.is_object());
    EXPECT_EQ(changes["version"], after->version);
    if (before == nullptr) {
      EXPECT_EQ(changes["parts"].size(), after->parts.size());
      shown = changes["data"];
    } else {
      shown = applied(shown, changes["view"]);
      // What stays is not sent again, unless stretches were joined.
      if (changes.dump().size() * 2 < after->view.dump().size()) ++appended;
      EXPECT_LT(changes["parts"].size(), after->parts.size());
    }
    ASSERT_EQ(shown, after->view) << step;
    EXPECT_TRUE(page_changes(after.get(), *after).is_null());
    before = std::move(after);
  }
  EXPECT_GT(appended, 15u);
}

TEST(Pages, EscapeTheNamesOfRuns) {
  const std::string evil = "</script><img src=x onerror=alert(1)>\"'&";
  for (const std::string& html :
       {waiting_page(evil), message_page("No such run", evil), live_page(evil, RunPage())})
    EXPECT_EQ(html.find("<img"), std::string::npos) << html;
}

std::shared_ptr<RunCard> sample_card(const std::string& name) {
  auto card = std::make_shared<RunCard>();
  card->name = name;
  card->state = trace::RunState::kLive;
  card->is_read = true;
  card->step = 12;
  card->steps_per_second = 2.5;
  card->has_loss = true;
  card->loss = 0.5;
  card->laws = {{"edge_of_stability", Verdict::kViolated},
                {"symmetry", Verdict::kHolds},
                {"balancedness", Verdict::kNotYet}};
  card->last_time_ns = 1'000'000'000;
  return card;
}

TEST(Metrics, SayWhatIsKnownAndNothingElse) {
  auto broken = sample_card("b\"\\\n\xff");
  broken->loss = std::nan("");
  auto unread = sample_card("c");
  unread->is_read = false;
  unread->laws.clear();
  const std::string text = metrics_text({sample_card("a"), broken, unread}, 10, 3'000'000'000);
  for (const char* line :
       {"tycho_runs{state=\"live\"} 3\n", "tycho_run_step{run=\"a\"} 12\n",
        "tycho_run_loss{run=\"a\"} 0.5\n", "tycho_run_lag_seconds{run=\"a\"} 2\n",
        "tycho_run_laws{run=\"a\",verdict=\"HOLDS\"} 1\n",
        "tycho_law_holds{run=\"a\",law=\"edge_of_stability\"} 0\n",
        "tycho_run_loss{run=\"b\\\"\\\\\\n\xef\xbf\xbd\"} NaN\n"})
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  EXPECT_EQ(text.find("law=\"balancedness\""), std::string::npos);
  EXPECT_EQ(text.find("tycho_run_step{run=\"c\"}"), std::string::npos);
  EXPECT_EQ(text.find("tycho_run_lowest_loss{"), std::string::npos);
  // The trainer's clock is ahead.
  EXPECT_EQ(metrics_text({sample_card("a")}, 10, 900'000'000).find("tycho_run_lag_seconds{"),
            std::string::npos);
}

TEST(Metrics, HaveAnUpperBoundOnTheirNumber) {
  std::vector<std::shared_ptr<const RunCard>> cards;
  for (int i = 0; i < 500; ++i) {
    auto card = sample_card("run" + std::to_string(i));
    card->start_time_ns = i;
    card->state = i < 3 ? trace::RunState::kLive : trace::RunState::kFinished;
    cards.push_back(std::move(card));
  }
  const std::string text = metrics_text(cards, 20, 0);
  EXPECT_NE(text.find("tycho_runs{state=\"finished\"} 497\n"), std::string::npos);
  EXPECT_NE(text.find("tycho_runs_shown 20\n"), std::string::npos);
  // Live ones, then the newest.
  EXPECT_NE(text.find("tycho_run_step{run=\"run0\"}"), std::string::npos);
  EXPECT_NE(text.find("tycho_run_step{run=\"run499\"}"), std::string::npos);
  EXPECT_EQ(text.find("tycho_run_step{run=\"run100\"}"), std::string::npos);
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 20 * 40);
}

TEST(Metrics, PleasePromtool) {
  if (std::system("command -v promtool >/dev/null") != 0) return;  // package prometheus
  ScratchDirectory scratch;
  auto broken = sample_card("b\"\\\n\xff");
  broken->loss = HUGE_VAL;
  write_file(scratch.path("metrics"), metrics_text({sample_card("a"), broken}, 10, 0));
  const std::string command = "promtool check metrics <'" + scratch.path("metrics") + "' >'" +
                              scratch.path("out") + "' 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << read_file(scratch.path("out"));
  EXPECT_EQ(read_file(scratch.path("out")), "");
}

}  // namespace
}  // namespace tycho::analyzer
