#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <utility>

#include "data/image_set.h"

namespace tycho::examples {
namespace {

constexpr int64_t kSide = 28;
constexpr float kPi = 3.14159265F;

struct Point {
  float x;
  float y;
};
using Stroke = std::vector<Point>;
using Glyph = std::vector<Stroke>;

/// Part of an ellipse as a polyline; angles in turns, 0 is to the right and 0.25 is down.
Stroke arc(Point center, float radius_x, float radius_y, float from, float to) {
  constexpr int kSegments = 14;
  Stroke stroke;
  for (int i = 0; i <= kSegments; ++i) {
    const float turn = from + (to - from) * static_cast<float>(i) / kSegments;
    const float angle = 2 * kPi * turn;
    stroke.push_back(
        {center.x + radius_x * std::cos(angle), center.y + radius_y * std::sin(angle)});
  }
  return stroke;
}

/// The ten figures in a box of width 1 and height 1 around the origin; y points down.
const std::array<Glyph, 10>& glyphs() {
  static const std::array<Glyph, 10> kGlyphs = {{
      {arc({0, 0}, 0.28F, 0.45F, 0, 1)},
      {{{-0.15F, -0.3F}, {0.05F, -0.45F}, {0.05F, 0.45F}}},
      {arc({0, -0.2F}, 0.26F, 0.25F, 0.5F, 1.08F),
       {{0.22F, -0.07F}, {-0.28F, 0.45F}, {0.3F, 0.45F}}},
      {arc({-0.02F, -0.22F}, 0.26F, 0.23F, 0.6F, 1.25F),
       arc({-0.02F, 0.22F}, 0.28F, 0.23F, 0.75F, 1.4F)},
      {{{0.12F, 0.45F}, {0.12F, -0.45F}, {-0.3F, 0.15F}, {0.3F, 0.15F}}},
      {{{0.25F, -0.45F}, {-0.2F, -0.45F}, {-0.23F, -0.05F}},
       arc({-0.02F, 0.17F}, 0.28F, 0.27F, 0.6F, 1.4F)},
      {arc({0.12F, 0.1F}, 0.4F, 0.55F, 0.5F, 0.74F), arc({0, 0.2F}, 0.27F, 0.25F, 0, 1)},
      {{{-0.3F, -0.45F}, {0.3F, -0.45F}, {-0.05F, 0.45F}}},
      {arc({0, -0.22F}, 0.22F, 0.22F, 0, 1), arc({0, 0.22F}, 0.27F, 0.23F, 0, 1)},
      {arc({0, -0.2F}, 0.27F, 0.25F, 0, 1), {{0.27F, -0.2F}, {0.22F, 0.1F}, {0.08F, 0.45F}}},
  }};
  return kGlyphs;
}

float distance_to_segment(Point p, Point a, Point b) {
  const float dx = b.x - a.x;
  const float dy = b.y - a.y;
  const float length_sq = std::max(dx * dx + dy * dy, 1e-12F);
  const float along = std::clamp(((p.x - a.x) * dx + (p.y - a.y) * dy) / length_sq, 0.0F, 1.0F);
  return std::hypot(p.x - a.x - along * dx, p.y - a.y - along * dy);
}

}  // namespace

ImageSet render_digits(int64_t count, uint64_t seed) {
  std::mt19937_64 engine(seed);
  // Written out instead of <random>'s distributions, whose sequences differ between standard
  // libraries.
  const auto uniform = [&engine](float low, float high) {
    return low + (high - low) * static_cast<float>(engine() >> 40) / static_cast<float>(1 << 24);
  };

  ImageSet set;
  set.rows = kSide;
  set.columns = kSide;
  set.pixels.reserve(static_cast<size_t>(count * kSide * kSide));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = i % 10;
    set.labels.push_back(label);

    const float angle = uniform(-0.45F, 0.45F);
    const float shear = uniform(-0.35F, 0.35F);
    const float width = 20 * uniform(0.65F, 1.2F);
    const float height = 20 * uniform(0.75F, 1.15F);
    const Point shift = {13.5F + uniform(-3, 3), 13.5F + uniform(-3, 3)};
    const float pen = uniform(0.5F, 1.8F);
    const float contrast = uniform(0.6F, 1);
    Glyph glyph = glyphs()[static_cast<size_t>(label)];
    for (Stroke& stroke : glyph) {
      for (Point& point : stroke) {
        const float x = (point.x + shear * point.y + uniform(-0.05F, 0.05F)) * width;
        const float y = (point.y + uniform(-0.05F, 0.05F)) * height;
        point = {shift.x + std::cos(angle) * x - std::sin(angle) * y,
                 shift.y + std::sin(angle) * x + std::cos(angle) * y};
      }
    }
    for (int64_t row = 0; row < kSide; ++row) {
      for (int64_t column = 0; column < kSide; ++column) {
        const Point pixel = {static_cast<float>(column), static_cast<float>(row)};
        float nearest = 1e9F;
        for (const Stroke& stroke : glyph) {
          for (size_t k = 1; k < stroke.size(); ++k) {
            nearest = std::min(nearest, distance_to_segment(pixel, stroke[k - 1], stroke[k]));
          }
        }
        const float ink = std::clamp(pen + 0.5F - nearest, 0.0F, 1.0F);
        set.pixels.push_back(std::clamp(contrast * ink + uniform(-0.35F, 0.35F), 0.0F, 1.0F));
      }
    }
  }
  return set;
}

ImageSet load_digits(const std::string& directory, int64_t count, uint64_t seed) {
  return directory.empty() ? render_digits(count, seed) : read_idx(directory);
}

}  // namespace tycho::examples
