#include "src/number_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace tycho::analyzer {
namespace {

TEST(NumberTextTest, IsPlainWhereThatIsShort) {
  EXPECT_EQ(number_text(18999.6, 4), "19000");
  EXPECT_EQ(number_text(13480, 4), "13480");
  EXPECT_EQ(number_text(123456, 3), "123000");
  EXPECT_EQ(number_text(999.96, 4), "1000");
  EXPECT_EQ(number_text(999999, 4), "1e6");
  EXPECT_EQ(number_text(1.6e6, 4), "1.6e6");
  EXPECT_EQ(number_text(-2.5e-7, 4), "-2.5e-7");
  EXPECT_EQ(number_text(0.001, 4), "0.001");
  EXPECT_EQ(number_text(0.00099996, 4), "0.001");
  EXPECT_EQ(number_text(0.000999, 4), "9.99e-4");
  EXPECT_EQ(number_text(0.30000001, 4), "0.3");
  EXPECT_EQ(number_text(-17, 4), "-17");
  EXPECT_EQ(number_text(-0.0, 4), "0");
  EXPECT_EQ(number_text(std::numeric_limits<double>::infinity(), 4), "inf");
  EXPECT_EQ(number_text(-std::numeric_limits<double>::infinity(), 3), "-inf");
}

TEST(NumberTextTest, IsTheNumberToItsDigits) {
  std::mt19937_64 random(std::random_device{}());
  std::uniform_real_distribution<double> exponent(-300, 300);
  std::uniform_real_distribution<double> near(-5, 8);
  for (int i = 0; i < 20000; ++i) {
    const double value =
        (i % 3 == 0 ? -1 : 1) * std::pow(10, i % 2 == 0 ? exponent(random) : near(random));
    const int digits = 2 + i % 4;
    const std::string text = number_text(value, digits);
    EXPECT_NEAR(std::stod(text) / value, 1, 0.5001 * std::pow(10, 1 - digits)) << value << text;
  }
}

}  // namespace
}  // namespace tycho::analyzer
