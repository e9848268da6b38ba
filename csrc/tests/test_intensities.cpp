// Gradients of intensities against what they must be: those of a linear texture, and none where nothing tells.
#include "core/intensities.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "core/kdtree.hpp"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSlope[3] = {0.3, -0.2, 0.4};

std::vector<float> random_points(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> distribution(-1.0f, 1.0f);
  std::vector<float> points(static_cast<std::size_t>(3 * n));
  for (float& x : points) x = distribution(generator);
  return points;
}

std::vector<float> linear_texture(const std::vector<float>& points) {
  std::vector<float> intensities;
  for (std::size_t i = 0; i < points.size(); i += 3) {
    double sum = 0.5;
    for (int a = 0; a < 3; ++a) sum += kSlope[a] * points[i + a];
    intensities.push_back(static_cast<float>(sum));
  }
  return intensities;
}

std::vector<float> gradients(const std::vector<float>& points, const std::vector<float>& intensities,
                             const std::vector<float>& normals, int k, float radius, int threads) {
  const int64_t n = static_cast<int64_t>(intensities.size());
  const dlc::KdTree tree(points.data(), n, 1);
  std::vector<float> out(static_cast<std::size_t>(4 * n), -7.0f);
  dlc::intensity_gradients(tree, intensities.data(), normals.data(), k, radius, out.data(), threads);
  return out;
}

// A plane z = 0 whose normals need not be of unit length: the texture's slope without its part along the normal.
void test_plane() {
  std::vector<float> points = random_points(6000, 1), normals(points.size(), 0.0f);
  for (std::size_t i = 2; i < points.size(); i += 3) points[i] = 0.0f, normals[i] = 2.0f;
  const std::vector<float> intensities = linear_texture(points);
  const std::vector<float> found = gradients(points, intensities, normals, 30, kInfinity, 1);
  for (std::size_t i = 0; i < intensities.size(); ++i) {
    CHECK(found[4 * i] == intensities[i]);
    for (int a = 0; a < 2; ++a) CHECK(std::fabs(found[4 * i + 1 + a] - kSlope[a]) < 1e-4);
    CHECK(found[4 * i + 3] == 0.0f);
  }
  const std::vector<float> again = gradients(points, intensities, normals, 30, kInfinity, 3);
  CHECK(std::memcmp(found.data(), again.data(), found.size() * sizeof(float)) == 0);
}

// Three neighbours are too few, a normal of length zero tells no plane.
void test_nothing_to_tell() {
  const std::vector<float> points = random_points(100, 2);
  std::vector<float> normals(points.size(), 0.5f);
  const std::vector<float> intensities = linear_texture(points);
  normals[0] = normals[1] = normals[2] = 0.0f;
  const std::vector<float> three = gradients(points, intensities, normals, 3, kInfinity, 1);
  const std::vector<float> four = gradients(points, intensities, normals, 4, kInfinity, 1);
  const std::vector<float> alone = gradients(points, intensities, normals, 30, 1e-4f, 1);
  for (std::size_t i = 0; i < intensities.size(); ++i)
    for (int a = 1; a < 4; ++a) {
      CHECK(three[4 * i + a] == 0.0f && alone[4 * i + a] == 0.0f);
      if (i == 0) CHECK(four[a] == 0.0f);
    }
  CHECK(four[5] != 0.0f);
}

// On a line only the slope along it is known; the rest is zero and not whatever rounding makes of it.
void test_line() {
  std::vector<float> points, normals;
  for (int i = 0; i < 50; ++i) {
    points.insert(points.end(), {0.1f * i, 0.1f * i, 0.0f});
    normals.insert(normals.end(), {0.0f, 0.0f, 1.0f});
  }
  const double along = 0.5 * (kSlope[0] + kSlope[1]);
  const std::vector<float> found = gradients(points, linear_texture(points), normals, 10, kInfinity, 1);
  for (std::size_t i = 0; i < 50; ++i) {
    CHECK(std::fabs(found[4 * i + 1] - along) < 1e-5 && std::fabs(found[4 * i + 2] - along) < 1e-5);
    CHECK(found[4 * i + 3] == 0.0f);
  }
}

}  // namespace

int main() {
  test_plane();
  test_nothing_to_tell();
  test_line();
  if (failures() == 0) std::puts("intensities: ok");
  return failures() != 0;
}
