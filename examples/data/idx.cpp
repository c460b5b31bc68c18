#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "data/image_set.h"

namespace tycho::examples {
namespace {

/// The array of an IDX file of bytes: big-endian magic 0x000008DD (DD dimensions), the sizes, the
/// bytes.
struct ByteArray {
  std::vector<int64_t> sizes;
  std::vector<uint8_t> bytes;
};

ByteArray read_idx_file(const std::filesystem::path& path, size_t dimensions) {
  const auto fail = [&path](const std::string& why) {
    throw std::runtime_error(path.string() + ": " + why);
  };
  // zlib reads a file that is not compressed as it is.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) fail("cannot be opened");
  const auto read = [&](void* to, size_t count) {
    constexpr size_t kPiece = size_t{1} << 24;
    auto* next = static_cast<uint8_t*>(to);
    while (count > 0) {
      const auto piece = static_cast<unsigned>(std::min(count, kPiece));
      if (gzread(file.get(), next, piece) != static_cast<int>(piece)) fail("ends too early");
      next += piece;
      count -= piece;
    }
  };
  const auto read_number = [&read] {
    std::array<uint8_t, 4> b{};
    read(b.data(), b.size());
    return (int64_t{b[0]} << 24) | (int64_t{b[1]} << 16) | (int64_t{b[2]} << 8) | int64_t{b[3]};
  };

  if (read_number() != static_cast<int64_t>(0x0800 + dimensions)) {
    fail("is no IDX file of bytes with " + std::to_string(dimensions) + " dimensions");
  }
  ByteArray array;
  int64_t total = 1;
  for (size_t i = 0; i < dimensions; ++i) {
    array.sizes.push_back(read_number());
    constexpr int64_t kLargest = int64_t{1} << 32;
    if (array.sizes.back() == 0 || total > kLargest / array.sizes.back())
      fail("has impossible sizes");
    total *= array.sizes.back();
  }
  array.bytes.resize(static_cast<size_t>(total));
  read(array.bytes.data(), array.bytes.size());
  return array;
}

}  // namespace

ImageSet read_idx(const std::string& directory) {
  for (const std::string prefix : {"train", "t10k"}) {
    for (const std::string suffix : {"", ".gz"}) {
      const std::filesystem::path images_path =
          std::filesystem::path(directory) / (prefix + "-images-idx3-ubyte" + suffix);
      const std::filesystem::path labels_path =
          std::filesystem::path(directory) / (prefix + "-labels-idx1-ubyte" + suffix);
      if (!std::filesystem::exists(images_path)) continue;
      const ByteArray images = read_idx_file(images_path, 3);
      const ByteArray labels = read_idx_file(labels_path, 1);
      if (images.sizes[0] != labels.sizes[0]) {
        throw std::runtime_error(labels_path.string() + ": not as many labels as there are images");
      }
      ImageSet set;
      set.rows = images.sizes[1];
      set.columns = images.sizes[2];
      set.labels.assign(labels.bytes.begin(), labels.bytes.end());
      set.pixels.reserve(images.bytes.size());
      for (const uint8_t byte : images.bytes) set.pixels.push_back(static_cast<float>(byte) / 255);
      return set;
    }
  }
  throw std::runtime_error(
      directory + ": holds no train-images-idx3-ubyte[.gz] or t10k-images-idx3-ubyte[.gz]");
}

}  // namespace tycho::examples
