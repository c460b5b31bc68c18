#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/page/packed_text.h"
#include "src/report/html_sections.h"
#include "src/report/report.h"
#include "tests/support/large_trace.h"
#include "tests/support/trace_samples.h"

namespace tycho::testing {
namespace {

using nlohmann::json;
using ::testing::Contains;
using ::testing::HasSubstr;

/// The trace of a model of 1 000 layers, written once for all tests.
const std::string& trace() {
  static const ScratchDirectory scratch;
  static const std::string path = [] {
    LargeTrace what;
    what.steps = 300;
    write_large_run(scratch.path("run"), what);
    return scratch.path("run");
  }();
  return path;
}

const analyzer::Report& report() {
  static const analyzer::Report result = [] {
    auto read = analyzer::read_report(trace(), {});
    EXPECT_TRUE(read.ok()) << read.status().message();
    return std::move(read).value();
  }();
  return result;
}

/// Bytes of RFC 4648.
std::string from_base64(const std::string& text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t digit = digits.find(c);
    if (digit == std::string::npos) break;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count & 255);
  }
  return out;
}

std::string inflated(const std::string& bytes) {
  std::string out(size_t{64} << 20, '\0');
  uLongf size = static_cast<uLongf>(out.size());
  EXPECT_EQ(
      uncompress(reinterpret_cast<Bytef*>(out.data()), &size,
                 reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uLong>(bytes.size())),
      Z_OK);
  out.resize(size);
  return out;
}

/// What the scripts of the page are given.
const json& data_of_page() {
  static const json result = [] {
    const std::string page = analyzer::html_report(report());
    const std::string begin = "<script type=\"application/x-deflate\" id=\"data\">";
    const size_t at = page.find(begin);
    EXPECT_NE(at, std::string::npos);
    const size_t from = at + begin.size();
    const std::string packed = page.substr(from, page.find("</script>", from) - from);
    return json::parse(inflated(from_base64(packed)));
  }();
  return result;
}

const json& series_of_layers(const std::string& statistic) {
  for (const json& entry : data_of_page().at("series")) {
    if (entry.at("statistic") == statistic && entry.at("scope") == "layers") return entry;
  }
  throw std::runtime_error("no series of " + statistic);
}

const json* whole_series(const json& entry, int layer) {
  for (const json& each : entry.at("entities")) {
    if (each.at("id") == layer) return &each;
  }
  return nullptr;
}

TEST(LargeReportTest, PageAndMemoryStayWithinTheirBounds) {
  const ScratchDirectory scratch;
  const std::string page = scratch.path("report.html");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl(TYCHO_COMMAND, "tycho", "report", trace().c_str(), "-o", page.c_str(), nullptr);
    ::_exit(127);
  }
  int status = -1;
  rusage usage{};
  ASSERT_EQ(::wait4(child, &status, 0, &usage), child);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_LT(std::filesystem::file_size(page), 5u << 20);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TYCHO_MEMORY_IS_NOT_OURS
#endif
#endif
#ifndef TYCHO_MEMORY_IS_NOT_OURS
  EXPECT_LT(usage.ru_maxrss, 200 * 1024);  // kilobytes
#endif
#endif
}

TEST(LargeReportTest, LayersThatStandOutAreGivenWhole) {
  std::vector<int> layers;
  std::vector<std::string> why;
  for (const json& each : data_of_page().at("layers").at("standing_out")) {
    layers.push_back(each.at("layer"));
    why.push_back(each.at("why").dump());
  }
  EXPECT_LE(layers.size(), 24u);
  EXPECT_THAT(layers, Contains(22));  // one gradient is a thousand times its neighbours'
  EXPECT_THAT(layers, Contains(35));  // its activations became infinite
  EXPECT_THAT(why, Contains(HasSubstr("norm of the gradient reached")));
  EXPECT_THAT(why, Contains(HasSubstr("size of the output not finite, first at about step 1")));
  const json& gradients = series_of_layers("grad_norm_sq");
  const json* jumped = whole_series(gradients, 22);
  ASSERT_NE(jumped, nullptr);
  const auto buckets = report().series.series({"grad_norm_sq", v1::SCOPE_LAYER}, 22);
  double largest = 0;
  double shown = 0;
  for (const auto& bucket : buckets) largest = std::max(largest, bucket.max);
  for (const json& each : jumped->at("max")) shown = std::max(shown, each.get<double>());
  EXPECT_GT(largest, 1000);
  EXPECT_NEAR(shown / largest, 1, 1e-4);
}

TEST(LargeReportTest, TheOtherLayersHaveTheirCoursesToTheirPrecision) {
  const json& entry = series_of_layers("grad_norm_sq");
  const json& rest = entry.at("rest");
  EXPECT_EQ(rest.at("of").size() + entry.at("entities").size(), 1000u);
  const std::string bytes = from_base64(rest.at("bytes"));
  const auto columns = rest.at("columns").get<size_t>();
  const auto stride = rest.at("stride").get<size_t>();
  EXPECT_GE(columns, 12u);
  ASSERT_EQ(bytes.size(), columns * rest.at("of").size());
  for (size_t i = 0; i < rest.at("of").size(); i += 37) {
    const auto buckets =
        report().series.series({"grad_norm_sq", v1::SCOPE_LAYER}, rest.at("of")[i].get<size_t>());
    const double low = rest.at("low")[i];
    const double high = rest.at("high")[i];
    for (size_t c = 0; c < columns; ++c) {
      double sum = 0;
      double count = 0;
      for (size_t b = c * stride; b < std::min(buckets.size(), (c + 1) * stride); ++b) {
        sum += buckets[b].sum;
        count += buckets[b].count;
      }
      const int level = static_cast<unsigned char>(bytes[i * columns + c]);
      ASSERT_GT(count, 0);
      ASSERT_GE(level, 1);
      ASSERT_LE(level, 254);
      ASSERT_LT(high, 20 * low);  // linear
      EXPECT_NEAR(low + (high - low) * (level - 1) / 253, sum / count, 0.0021 * (high - low));
    }
  }
}

TEST(LargeReportTest, EveryLayerIsInTheTableAndInTheJson) {
  const json& rows = data_of_page().at("layers").at("rows");
  ASSERT_EQ(rows.size(), 1000u);
  EXPECT_EQ(rows[4].at("name"), "blocks.0.mlp.0 (Linear 96 -> 384)");
  EXPECT_EQ(rows[4].at("block"), "blocks.0");
  EXPECT_EQ(rows[4].at("kind"), "blocks.*.mlp.0 (Linear)");
  EXPECT_EQ(rows[4].at("weights"), 96 * 384 + 384);
  // What was finite long ago is not what was measured last.
  const json& columns = data_of_page().at("layers").at("columns");
  const auto output = std::find_if(columns.begin(), columns.end(), [](const json& column) {
    return column.at("statistic") == "activation_rms";
  });
  ASSERT_NE(output, columns.end());
  const auto place = static_cast<size_t>(output - columns.begin());
  EXPECT_EQ(rows[35].at("values")[place], "not finite");
  EXPECT_TRUE(rows[36].at("values")[place].is_number());
  const json program = json::parse(analyzer::json_report(report()));
  ASSERT_EQ(program.at("layers").size(), 1000u);
  EXPECT_EQ(program.at("layers")[999].at("path"), rows[999].at("path"));
  EXPECT_EQ(program.at("laws").size(), report().findings.size());
}

TEST(PackedTextTest, EncodesAsTheStandardsSay) {
  // RFC 4648, section 10.
  const std::pair<const char*, const char*> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, coded] : vectors) EXPECT_EQ(analyzer::base64(plain), coded);
  std::string bytes;
  for (int i = 0; i < 100000; ++i) bytes += static_cast<char>(i * i % 251);
  EXPECT_EQ(inflated(analyzer::deflated(bytes)), bytes);
}

}  // namespace
}  // namespace tycho::testing
