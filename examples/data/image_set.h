#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tycho::examples {

/// Labelled grey-scale images of one size.
struct ImageSet {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> pixels;    ///< [image][row][column], 0 is background, 1 is ink
  std::vector<int64_t> labels;  ///< one per image

  int64_t size() const { return static_cast<int64_t>(labels.size()); }
};

/// Draws `count` digits of 28 x 28 pixels: each a stroke figure under a random rotation, shear,
/// scale and shift, with random pen width and contrast, and pixel noise. Labels cycle through 0
/// to 9. The same seed draws the same digits.
ImageSet render_digits(int64_t count, uint64_t seed);

/// Reads MNIST or any other image set in IDX format, plain or gzipped, from a directory that holds
/// `<prefix>-images-idx3-ubyte[.gz]` and `<prefix>-labels-idx1-ubyte[.gz]`; the prefix `train` is
/// preferred to `t10k`. Throws std::runtime_error that names the file.
ImageSet read_idx(const std::string& directory);

/// `read_idx(directory)`, or `count` rendered digits where `directory` is empty.
ImageSet load_digits(const std::string& directory, int64_t count, uint64_t seed);

}  // namespace tycho::examples
