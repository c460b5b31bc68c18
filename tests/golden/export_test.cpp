#include "src/export/export.h"

#include <gtest/gtest.h>

#include <clocale>
#include <cmath>
#include <cstdio>
#include <limits>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/golden/event_file.h"
#include "tests/golden/golden_run.h"

namespace tycho::testing {
namespace {

using Export = Result<analyzer::ExportOutcome> (*)(const std::string&, std::FILE*);

std::string exported(Export format, const ScratchDirectory& scratch) {
  write_golden_run(scratch.path("run"));
  const std::string path = scratch.path("exported");
  std::FILE* out = std::fopen(path.c_str(), "wb");
  const auto outcome = format(scratch.path("run"), out);
  std::fclose(out);
  EXPECT_TRUE(outcome.ok()) << outcome.status().message();
  if (outcome.ok()) {
    EXPECT_EQ(outcome.value().values, 5u);
  }
  return read_file(path);
}

/// A locale that writes 1234.5 as 1.234,5.
struct DecimalComma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

const char* const kGoldenCsv =
    "step,scope,statistic,value,stderr\n"
    "0,run,loss,0.10000000000000001,\n"
    "1,run,loss,nan,\n"
    "2,run,loss,-inf,\n"
    "2,\"param:a,\"\"b\"\"\",weight_norm_sq,4.9406564584124654e-324,0.5\n"
    "2,param:layers.1.weight,weight_norm_sq,1.7976931348623157e+308,\n";

TEST(ExportTest, CsvIsLongFormWithNumbersThatRoundTrip) {
  const ScratchDirectory scratch;
  EXPECT_EQ(exported(analyzer::export_csv, scratch), kGoldenCsv);
}

TEST(ExportTest, PositionsOfAListAreScopes) {
  const ScratchDirectory scratch;
  write_list_run(scratch.path("run"));
  const std::string path = scratch.path("exported");
  std::FILE* out = std::fopen(path.c_str(), "wb");
  const auto outcome = analyzer::export_csv(scratch.path("run"), out);
  std::fclose(out);
  EXPECT_TRUE(outcome.ok());
  EXPECT_EQ(read_file(path),
            "step,scope,statistic,value,stderr\n"
            "0,index:0,hessian_eigenvalue,3,\n"
            "0,index:1,hessian_eigenvalue,2,\n"
            "1,index:0,hessian_eigenvalue,4,\n");
}

TEST(ExportTest, CsvDoesNotDependOnTheLocale) {
  const std::locale before = std::locale::global(std::locale(std::locale(), new DecimalComma));
  std::ostringstream text;
  text << 1234.5;
  const ScratchDirectory scratch;
  const std::string csv = exported(analyzer::export_csv, scratch);
  std::locale::global(before);
  ASSERT_EQ(text.str(), "1.234,5") << "the locale is not in force";
  EXPECT_EQ(csv, kGoldenCsv);
}

TEST(ExportTest, JsonLinesAreObjectsWithTheSameValues) {
  const ScratchDirectory scratch;
  std::istringstream lines(exported(analyzer::export_jsonl, scratch));
  std::vector<nlohmann::json> objects;
  for (std::string line; std::getline(lines, line);) objects.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(objects.size(), 5u);
  EXPECT_EQ(objects[0]["step"], 0);
  EXPECT_EQ(objects[0]["value"], 0.1);
  EXPECT_EQ(objects[1]["value"], "nan");
  EXPECT_EQ(objects[2]["value"], "-inf");
  EXPECT_EQ(objects[3]["scope"], "param:a,\"b\"");
  EXPECT_EQ(objects[3]["value"], std::numeric_limits<double>::denorm_min());
  EXPECT_EQ(objects[3]["stderr"], 0.5);
  EXPECT_EQ(objects[4]["value"], std::numeric_limits<double>::max());
}

TEST(ExportTest, EventFileSatisfiesAStrictReader) {
  ASSERT_EQ(crc32c("123456789"), 0xe3069283u);  // check value of CRC-32C
  const ScratchDirectory scratch;
  const std::string bytes = exported(analyzer::export_tensorboard, scratch);
  const std::vector<EventEntry> events = read_event_file(bytes);
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_FALSE(events[0].has_value);
  EXPECT_EQ(events[1].tag, "loss/run");
  EXPECT_EQ(events[1].step, 0);
  EXPECT_EQ(events[1].wall_time, 1.0);
  EXPECT_EQ(events[1].value, 0.1f);
  EXPECT_TRUE(std::isnan(events[2].value));
  EXPECT_EQ(events[3].value, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(events[5].step, 2);
  EXPECT_EQ(events[5].tag, "weight_norm_sq/param:layers.1.weight");
  for (const size_t at : {size_t{0}, size_t{9}, size_t{14}, bytes.size() - 1}) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    EXPECT_THROW(read_event_file(damaged), std::runtime_error) << "byte " << at;
  }
}

}  // namespace
}  // namespace tycho::testing
