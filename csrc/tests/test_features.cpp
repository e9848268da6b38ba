// Descriptors of pairs known beforehand, their invariances, and nearest rows against brute force.
#include "core/features.hpp"

#include <algorithm>

#include "check.hpp"
#include "core/kdtree.hpp"

using dlc::kFeatureSize;
using dlc::kHistogramBins;

namespace {

using Floats = std::vector<float>;

int64_t rows(const Floats& points) { return static_cast<int64_t>(points.size() / 3); }

Floats describe(const Floats& points, const Floats& normals, float radius, bool oriented, int threads) {
  const dlc::KdTree tree(points.data(), rows(points), threads);
  Floats features(static_cast<std::size_t>(rows(points) * kFeatureSize), -7);
  dlc::fpfh(tree, points.data(), normals.data(), rows(points), radius, oriented, features.data(), threads);
  return features;
}

Floats random_normals(int64_t n, unsigned seed) {
  Floats normals = shapes::points("uniform", n, seed);
  for (std::size_t i = 0; i < normals.size(); i += 3) {
    float norm = 0;
    for (std::size_t a = 0; a < 3; ++a) normals[i + a] -= 0.5f, norm += normals[i + a] * normals[i + a];
    for (std::size_t a = 0; a < 3; ++a) normals[i + a] /= std::sqrt(norm);
  }
  return normals;
}

void check_shape(const std::string& shape, int64_t n) {
  const Floats points = shapes::points(shape, n, 3), normals = random_normals(n, 4);
  for (const bool oriented : {true, false})
    for (const float radius : {1e-6f, 0.2f, 50.0f}) {
      const Floats features = describe(points, normals, radius, oriented, 1);
      for (const int threads : {2, 3}) CHECK(describe(points, normals, radius, oriented, threads) == features);
      for (std::size_t i = 0; i < features.size(); i += kHistogramBins) {
        float sum = 0;
        for (std::size_t b = 0; b < kHistogramBins; ++b) sum += features[i + b];
        CHECK(*std::min_element(&features[i], &features[i] + kHistogramBins) >= 0);
        CHECK(sum < 200.01f);  // NaN fails
        if (shape == "uniform" && n > 100 && radius == 50.0f) CHECK(sum > 199.99f);
      }
      if (oriented) continue;
      Floats flipped = normals;
      for (std::size_t i = 0; i < flipped.size(); ++i)
        if (i / 3 % 2) flipped[i] = -flipped[i];
      const Floats again = describe(points, flipped, radius, false, 1);
      std::size_t apart = 0;  // a value at the very edge of a bin may be moved by the mirror
      for (std::size_t i = 0; i < features.size(); ++i) apart += std::fabs(again[i] - features[i]) > 0.1f;
      if (shape == "uniform" || shape == "surface") CHECK(apart * 50 <= features.size());
    }
}

// Of two points, one with its normal up and the other's leaning towards it by the angle, within the plane of the two.
void check_pair(float angle, bool oriented, int theta_bin, int phi_bin) {
  const Floats points{0, 0, 0, 1, 0, 0}, normals{std::sin(angle), 0, std::cos(angle), 0, 0, 1};
  const Floats features = describe(points, normals, 2.0f, oriented, 1);
  for (int i = 0; i < 2; ++i)
    for (int bin = 0; bin < kFeatureSize; ++bin) {
      const bool full = bin == theta_bin || bin == kHistogramBins + 5 || bin == 2 * kHistogramBins + phi_bin;
      CHECK(features[static_cast<std::size_t>(i * kFeatureSize + bin)] == (full ? 200.0f : 0.0f));
    }
}

void check_nearest(int64_t n, int64_t m, int size) {
  std::mt19937 random(5);
  const auto row = [&](int64_t count) {
    Floats out(static_cast<std::size_t>(count * size));
    for (float& x : out) x = static_cast<float>(random() % 5);  // small integers: exact sums, many ties
    return out;
  };
  const Floats a = row(n), b = row(m);
  std::vector<int64_t> indices(static_cast<std::size_t>(n), -7);
  Floats squared(static_cast<std::size_t>(n), -7);
  dlc::nearest_features(a.data(), n, b.data(), m, size, indices.data(), squared.data(), 1);
  for (const int threads : {2, 3}) {
    std::vector<int64_t> again(indices.size());
    Floats squared_again(squared.size());
    dlc::nearest_features(a.data(), n, b.data(), m, size, again.data(), squared_again.data(), threads);
    CHECK(again == indices && squared_again == squared);
  }
  for (int64_t i = 0; i < n; ++i) {
    int64_t best = -1;
    float least = shapes::kInfinity;
    for (int64_t j = 0; j < m; ++j) {
      float d2 = 0;
      for (int d = 0; d < size; ++d) {
        const float x = a[static_cast<std::size_t>(i * size + d)] - b[static_cast<std::size_t>(j * size + d)];
        d2 += x * x;
      }
      if (d2 < least) least = d2, best = j;
    }
    CHECK(indices[static_cast<std::size_t>(i)] == best);
    CHECK(squared[static_cast<std::size_t>(i)] == least);
  }
}

// A normal that is far from a unit vector: angles beyond the last bin are in the last, not in whichever.
void check_long_normal() {
  const Floats points{0, 0, 0, 1, 0, 0}, normals{3e19f, 1, 0, 0, 1, 0};
  Floats features(2 * kFeatureSize);
  dlc::fpfh(dlc::KdTree(points.data(), 2, 1), points.data(), normals.data(), 2, 2.0f, true, features.data(), 1);
  CHECK(features[kFeatureSize - 1] == 200 && features[2 * kFeatureSize - 1] == 200);
}

}  // namespace

int main() {
  check_long_normal();
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 2, 3, 400}) check_shape(shape, n);
  constexpr float degree = 0.0174532925f;
  check_pair(0, true, 5, 5);
  check_pair(0, false, 5, 5);
  check_pair(30 * degree, true, 4, 8);            // theta -30 of +-180, phi sin 30
  check_pair(30 * degree, false, 3, 8);           // theta -30 of +-90
  check_pair(150 * degree, true, 10, 8);          // theta 150
  check_pair(-30 * degree, true, 6, 2);
  for (const int64_t n : {0, 1, 3, 4, 5, 63, 65, 200})
    for (const int64_t m : {0, 1, 15, 16, 17, 130})
      for (const int size : {1, 3, 33}) check_nearest(n, m, size);
  return failures() ? 1 : 0;
}
