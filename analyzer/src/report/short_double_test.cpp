#include "src/report/short_double.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace tycho::analyzer {
namespace {

TEST(ShortDoubleTest, KeepsSixDigitsOverTheWholeRange) {
  std::mt19937_64 random(std::random_device{}());
  std::uniform_real_distribution<double> exponent(-307, 308);
  for (int i = 0; i < 100000; ++i) {
    const double value = (i % 2 == 0 ? 1 : -1) * std::pow(10.0, exponent(random));
    EXPECT_LE(std::fabs(ShortDouble(value).value() / value - 1), 4.8e-7) << value;
  }
}

TEST(ShortDoubleTest, KeepsWhatIsNoOrdinaryNumber) {
  using Limits = std::numeric_limits<double>;
  EXPECT_EQ(ShortDouble().value(), 0);
  EXPECT_EQ(ShortDouble(0).value(), 0);
  EXPECT_EQ(ShortDouble(1).value(), 1);
  EXPECT_TRUE(std::isnan(ShortDouble(Limits::quiet_NaN()).value()));
  EXPECT_EQ(ShortDouble(Limits::infinity()).value(), Limits::infinity());
  EXPECT_EQ(ShortDouble(-Limits::infinity()).value(), -Limits::infinity());
  EXPECT_TRUE(std::isfinite(ShortDouble(Limits::max()).value()));
  EXPECT_NEAR(ShortDouble(Limits::max()).value() / Limits::max(), 1, 1e-6);
  EXPECT_TRUE(std::isfinite(ShortDouble(Limits::lowest()).value()));
}

}  // namespace
}  // namespace tycho::analyzer
