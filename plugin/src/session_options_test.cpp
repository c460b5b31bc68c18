#include <gtest/gtest.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "options.h"

namespace tycho {
namespace {

/// Sets an environment variable while it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Variable() { unsetenv(name_); }

 private:
  const char* name_;
};

/// Whoever runs the tests may have variables of Tycho's, which are none of a test's business.
void forget_variables() {
  std::vector<std::string> names;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (text.rfind("TYCHO_", 0) == 0) names.push_back(text.substr(0, text.find('=')));
  }
  for (const std::string& name : names) unsetenv(name.c_str());
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const OptionError& error) {
    return error.what();
  }
  return "";
}

TEST(SessionOptions, RefusesWhatIsOutOfRangeByName) {
  SessionOptions options("run");
  for (const double value : {0.0, -0.1, 1.5}) {
    EXPECT_NE(error_of([&] { options.overhead_budget(value); }).find("overhead_budget"),
              std::string::npos);
  }
  EXPECT_NE(error_of([&] { options.every("noise", 0); }).find("noise=0"), std::string::npos);
  EXPECT_NE(error_of([&] { options.log_spaced("noise", -1); }).find("log_spaced"),
            std::string::npos);
  EXPECT_NE(error_of([&] { options.batch_dim(-1); }).find("batch_dim"), std::string::npos);
  EXPECT_NE(error_of([&] { options.batch_dim(64); }).find("0 to 63"), std::string::npos);
  EXPECT_NE(error_of([&] { options.resume(-1); }).find("resume"), std::string::npos);
}

TEST(SessionOptions, SettersAndGettersOfOneNameGoTogether) {
  SessionOptions options("run");
  options.preset(Preset::full).include({"encoder.*", "head"}).exclude({"*.norm"}).tags({"a"});
  options.every("noise", 10).overhead_budget(std::nullopt).run_name("x").seed(3);
  EXPECT_EQ(options.include().size(), 2U);
  EXPECT_EQ(options.every().at("noise"), 10);
  EXPECT_FALSE(options.overhead_budget().has_value());
  const auto texts = option_texts(options);
  EXPECT_EQ(texts.at("include"), "encoder.*,head");
  EXPECT_EQ(texts.at("overhead_budget"), "none");
  EXPECT_EQ(texts.at("every"), "noise=10");
}

TEST(SessionOptions, TheEnvironmentWins) {
  const Variable preset("TYCHO_PRESET", "economy");
  const Variable budget("TYCHO_OVERHEAD_BUDGET", "0.1");
  const Variable every("TYCHO_EVERY", "sharpness=100,noise=10");
  const Variable dimension("TYCHO_BATCH_DIM", "1");
  const Variable tags("TYCHO_TAGS", "a,b");
  const Variable schedule("TYCHO_SCHEDULE", "fixed");
  const SessionOptions options =
      with_environment(SessionOptions("run").preset(Preset::full).every("noise", 5));
  EXPECT_EQ(options.preset(), Preset::economy);
  EXPECT_EQ(options.overhead_budget(), 0.1);
  EXPECT_EQ(options.every().at("sharpness"), 100);
  EXPECT_EQ(options.every().at("noise"), 10);
  EXPECT_EQ(options.batch_dim(), 1);
  EXPECT_EQ(options.tags().size(), 2U);
  EXPECT_EQ(options.schedule(), Schedule::fixed);
  EXPECT_EQ(option_texts(options).at("schedule"), "fixed");
}

TEST(SessionOptions, AWrongEnvironmentIsRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {"TYCHO_PRESET", "everything"}, {"TYCHO_OVERHEAD_BUDGET", "two"}, {"TYCHO_EVERY", "noise"},
      {"TYCHO_BATCH_DIM", "1x"},      {"TYCHO_LOSS_REDUCTION", "none"}, {"TYCHO_DURABILITY", "yes"},
      {"TYCHO_SEED", "-1"},           {"TYCHO_SCHEDULE", "often"},      {"TYCHO_RESUME", ""}};
  for (const auto& [name, value] : cases) {
    const Variable variable(name, value);
    EXPECT_NE(error_of([] { with_environment(SessionOptions("run")); }).find(name),
              std::string::npos)
        << name;
  }
}

/// A locale with a decimal comma, where the machine has one.
class DecimalComma {
 public:
  DecimalComma() {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE", "fr_FR"}) {
      if (std::setlocale(LC_ALL, name) != nullptr) return;
    }
  }
  ~DecimalComma() { std::setlocale(LC_ALL, "C"); }
};

TEST(SessionOptions, NumbersOfTheEnvironmentDoNotDependOnTheLocale) {
  const DecimalComma locale;
  for (const char* text : {"0.05", "5e-2", "0.05000"}) {
    const Variable budget("TYCHO_OVERHEAD_BUDGET", text);
    EXPECT_EQ(with_environment(SessionOptions("run")).overhead_budget(), 0.05) << text;
  }
  for (const char* text : {"0,05", " 0.05", "0.05 ", "+0.05", "nan", "inf", ""}) {
    const Variable budget("TYCHO_OVERHEAD_BUDGET", text);
    EXPECT_NE(error_of([] { with_environment(SessionOptions("run")); }), "") << text;
  }
}

TEST(SessionOptions, ASeedMayBeAnyNumberOf64Bits) {
  const Variable seed("TYCHO_SEED", "18446744073709551615");
  EXPECT_EQ(with_environment(SessionOptions("run")).seed(), std::numeric_limits<uint64_t>::max());
  for (const char* text : {"18446744073709551616", "-1", "1e3", "0x10", " 1"}) {
    const Variable wrong("TYCHO_SEED", text);
    EXPECT_NE(error_of([] { with_environment(SessionOptions("run")); }).find("TYCHO_SEED"),
              std::string::npos)
        << text;
  }
}

TEST(SessionOptions, AnUnknownVariableIsNamedWithTheNearest) {
  forget_variables();
  EXPECT_TRUE(unknown_variables().empty()) << unknown_variables().front();
  const Variable known("TYCHO_TAGS", "a");
  const Variable wrong("TYCHO_OVERHEAD_BUGDET", "0.1");
  const Variable other("TYCHO_SEEDS", "1");
  const auto sentences = unknown_variables();
  ASSERT_EQ(sentences.size(), 2U);
  const std::string all = sentences[0] + sentences[1];
  EXPECT_NE(all.find("TYCHO_OVERHEAD_BUGDET"), std::string::npos);
  EXPECT_NE(all.find("nearest is TYCHO_OVERHEAD_BUDGET"), std::string::npos);
  EXPECT_NE(all.find("nearest is TYCHO_SEED"), std::string::npos);
}

TEST(Patterns, StarAndQuestionMark) {
  EXPECT_TRUE(matches("*", ""));
  EXPECT_TRUE(matches("encoder.*.weight", "encoder.layers.0.weight"));
  EXPECT_TRUE(matches("layer?", "layer1"));
  EXPECT_FALSE(matches("layer?", "layer10"));
  EXPECT_FALSE(matches("layer", "layer1"));
  EXPECT_TRUE(matches("*a*b", "aab"));
}

}  // namespace
}  // namespace tycho
