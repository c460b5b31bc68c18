#include "valid_text.h"

#include <gtest/gtest.h>

#include <string>

namespace tycho {
namespace {

TEST(ValidText, KeepsWhatIsUtf8) {
  for (const std::string text :
       {"", "a.b\n\"<", "\xc2\x80", "gr\xc3\xbcn", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(valid_text(text), text);
  }
  EXPECT_EQ(valid_text(std::string("a\0b", 3)), std::string("a\0b", 3));
}

TEST(ValidText, WritesOutBytesThatAreNone) {
  EXPECT_EQ(valid_text("\xff\xfe bad"), "\\xff\\xfe bad");
  EXPECT_EQ(valid_text("a\xc3"), "a\\xc3");                           // cut off
  EXPECT_EQ(valid_text("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(valid_text("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(valid_text("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond the last one
  EXPECT_EQ(valid_text("\xe2\x82z"), "\\xe2\\x82z");
  EXPECT_EQ(valid_text("\x80"), "\\x80");
}

}  // namespace
}  // namespace tycho
