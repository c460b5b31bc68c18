#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "data/image_set.h"
#include "data/text.h"

namespace tycho::examples {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

class ExampleDataTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ =
        std::filesystem::temp_directory_path() /
        ("tycho_example_data_" + std::to_string(testing::UnitTest::GetInstance()->random_seed()) +
         "_" + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void write(const std::string& name, const std::string& bytes) const {
    std::ofstream(directory_ / name, std::ios::binary) << bytes;
  }

  std::filesystem::path directory_;
};

std::string big_endian(uint32_t number) {
  return {static_cast<char>(number >> 24), static_cast<char>(number >> 16),
          static_cast<char>(number >> 8), static_cast<char>(number)};
}

const std::string kImages = big_endian(0x0803) + big_endian(2) + big_endian(1) + big_endian(3) +
                            std::string("\0\xff\x33\1\2\3", 6);
const std::string kLabels = big_endian(0x0801) + big_endian(2) + std::string("\7\0", 2);

TEST_F(ExampleDataTest, IdxIsRead) {
  write("t10k-images-idx3-ubyte", kImages);
  write("t10k-labels-idx1-ubyte", kLabels);
  const ImageSet set = read_idx(directory_);
  EXPECT_EQ(set.rows, 1);
  EXPECT_EQ(set.columns, 3);
  EXPECT_THAT(set.labels, testing::ElementsAre(7, 0));
  EXPECT_THAT(set.pixels, testing::ElementsAre(0, 1, 0.2F, 1 / 255.F, 2 / 255.F, 3 / 255.F));
}

TEST_F(ExampleDataTest, GzippedIdxIsRead) {
  for (const auto& [name, bytes] : {std::pair{"train-images-idx3-ubyte.gz", kImages},
                                    std::pair{"train-labels-idx1-ubyte.gz", kLabels}}) {
    const gzFile file = gzopen((directory_ / name).c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
  }
  EXPECT_THAT(read_idx(directory_).labels, testing::ElementsAre(7, 0));
}

TEST_F(ExampleDataTest, BadIdxIsRefusedByName) {
  EXPECT_THAT([&] { read_idx(directory_); },
              ThrowsMessage<std::runtime_error>(HasSubstr(directory_.string())));
  write("t10k-labels-idx1-ubyte", kLabels);
  for (size_t cut = 0; cut < kImages.size(); ++cut) {
    write("t10k-images-idx3-ubyte", kImages.substr(0, cut));
    EXPECT_THAT([&] { read_idx(directory_); },
                ThrowsMessage<std::runtime_error>(HasSubstr("t10k-images-idx3-ubyte")))
        << cut;
  }
  write("t10k-images-idx3-ubyte", big_endian(0x0803) + std::string(12, '\xff'));
  EXPECT_THAT([&] { read_idx(directory_); },
              ThrowsMessage<std::runtime_error>(HasSubstr("impossible sizes")));
  write("t10k-images-idx3-ubyte", kLabels);
  EXPECT_THAT([&] { read_idx(directory_); },
              ThrowsMessage<std::runtime_error>(HasSubstr("3 dimensions")));
}

TEST(RenderedDigitsTest, AreTheSameForTheSameSeedAndDifferOtherwise) {
  const ImageSet set = render_digits(40, 1);
  EXPECT_EQ(set.size(), 40);
  EXPECT_EQ(set.pixels.size(), 40U * 28 * 28);
  EXPECT_EQ(set.pixels, render_digits(40, 1).pixels);
  EXPECT_NE(set.pixels, render_digits(40, 2).pixels);
  for (int64_t i = 0; i < set.size(); ++i) EXPECT_EQ(set.labels[static_cast<size_t>(i)], i % 10);
}

// The figures carry their labels: of fresh digits, far more than one in ten are nearest to the mean
// image of their own class.
TEST(RenderedDigitsTest, CanBeToldApart) {
  constexpr size_t kPixels = 28 * 28;
  const ImageSet known = render_digits(1000, 1);
  std::vector<double> mean(10 * kPixels);
  for (size_t i = 0; i < 1000; ++i) {
    for (size_t p = 0; p < kPixels; ++p)
      mean[(i % 10) * kPixels + p] += known.pixels[i * kPixels + p] / 100;
  }
  const ImageSet fresh = render_digits(500, 2);
  int right = 0;
  for (size_t i = 0; i < 500; ++i) {
    double best = 1e30;
    size_t nearest = 0;
    for (size_t digit = 0; digit < 10; ++digit) {
      double distance = 0;
      for (size_t p = 0; p < kPixels; ++p) {
        const double d = fresh.pixels[i * kPixels + p] - mean[digit * kPixels + p];
        distance += d * d;
      }
      if (distance < best) {
        best = distance;
        nearest = digit;
      }
    }
    right += static_cast<int64_t>(nearest) == fresh.labels[i] ? 1 : 0;
  }
  EXPECT_GT(right, 250);
}

TEST_F(ExampleDataTest, TextIsIndexedByItsAlphabet) {
  write("text", "abca\n");
  const Text text = load_text(directory_ / "text");
  EXPECT_EQ(text.alphabet, "\nabc");
  EXPECT_THAT(text.symbols, testing::ElementsAre(1, 2, 3, 1, 0));
  EXPECT_THAT([&] { load_text(directory_ / "none"); },
              ThrowsMessage<std::runtime_error>(HasSubstr("none")));
}

TEST(RepositoryTextTest, IsFound) { EXPECT_GT(load_text("").symbols.size(), 10000U); }

}  // namespace
}  // namespace tycho::examples
