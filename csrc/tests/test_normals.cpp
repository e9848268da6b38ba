// Normals and covariances: known surfaces, a two-pass covariance of brute-force neighbours, degenerate neighbourhoods.
#include "core/normals.hpp"

#include <algorithm>

#include "check.hpp"
#include "core/kdtree.hpp"

using dlc::KdTree;
using shapes::kInfinity;

namespace {

struct Surface {
  std::vector<float> normals, covariances;

  bool operator==(const Surface& other) const {
    return normals == other.normals && covariances == other.covariances;
  }
};

Surface estimate(const std::vector<float>& points, int k, float limit, int threads) {
  const int64_t n = static_cast<int64_t>(points.size() / 3);
  const KdTree tree(points.data(), n, threads);
  Surface out{std::vector<float>(points.size(), -7), std::vector<float>(2 * points.size(), -7)};
  dlc::normals(tree, points.data(), n, k, limit, out.normals.data(), out.covariances.data(), threads);
  return out;
}

void check_against_two_passes(const std::string& shape, int64_t n, int k, float limit) {
  const std::vector<float> points = shapes::points(shape, n, 6);
  const Surface surface = estimate(points, k, limit, 1);
  for (const int threads : {2, 3}) CHECK(estimate(points, k, limit, threads) == surface);
  for (std::size_t i = 0; i < points.size() / 3; i += 1 + points.size() / 300) {
    std::vector<std::pair<float, std::size_t>> near;
    for (std::size_t j = 0; j < points.size() / 3; ++j) {
      const float x = points[3 * i] - points[3 * j], y = points[3 * i + 1] - points[3 * j + 1],
                  z = points[3 * i + 2] - points[3 * j + 2];
      const float d2 = x * x + y * y + z * z;
      if (std::sqrt(d2) < limit) near.emplace_back(d2, j);
    }
    std::sort(near.begin(), near.end());
    near.resize(std::min(near.size(), static_cast<std::size_t>(k)));
    const float* normal = &surface.normals[3 * i];
    const float* covariance = &surface.covariances[6 * i];
    if (near.size() < 3) {
      CHECK(normal[0] == 0 && normal[1] == 0 && normal[2] == 1);
      for (int e = 0; e < 6; ++e) CHECK(covariance[e] == 0);
      continue;
    }
    double mean[3] = {0, 0, 0}, expected[3][3] = {};
    for (const auto& [d2, j] : near)
      for (std::size_t a = 0; a < 3; ++a) mean[a] += points[3 * j + a] / static_cast<double>(near.size());
    for (const auto& [d2, j] : near)
      for (std::size_t a = 0; a < 3; ++a)
        for (std::size_t b = 0; b < 3; ++b)
          expected[a][b] += (points[3 * j + a] - mean[a]) * (points[3 * j + b] - mean[b]) / static_cast<double>(near.size());
    const double trace = expected[0][0] + expected[1][1] + expected[2][2];
    double origin_distance2 = 0;
    for (std::size_t a = 0; a < 3; ++a) origin_distance2 += static_cast<double>(points[3 * i + a]) * points[3 * i + a];
    const double tolerance = 1e-6 * trace + 1e-28 * origin_distance2;  // the second: rounding of the mean here
    int entry = 0;
    for (int a = 0; a < 3; ++a)
      for (int b = a; b < 3; ++b) CHECK(std::fabs(covariance[entry++] - expected[a][b]) <= tolerance + 2e-45);

    // A unit vector n is the least eigenvector where C n = (n C n) n and no axis gives a smaller variance.
    const double length = std::sqrt(static_cast<double>(normal[0]) * normal[0] + normal[1] * normal[1] + normal[2] * normal[2]);
    CHECK(std::fabs(length - 1) < 1e-6);
    double image[3] = {0, 0, 0}, variance = 0;
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) image[a] += expected[a][b] * normal[b];
      variance += image[a] * normal[a];
    }
    for (int a = 0; a < 3; ++a) {
      CHECK(std::fabs(image[a] - variance * normal[a]) <= tolerance);
      CHECK(variance <= expected[a][a] + tolerance);
    }
    CHECK(*std::max_element(normal, normal + 3) >= -*std::min_element(normal, normal + 3));
  }
}

void check_plane() {
  std::vector<float> points = shapes::points("plane", 400, 3);
  for (float& x : points) x += 1000;  // y = 1002.5
  const Surface surface = estimate(points, 15, kInfinity, 2);
  for (std::size_t i = 0; i < 400; ++i)
    CHECK(std::fabs(surface.normals[3 * i]) < 1e-6 && surface.normals[3 * i + 1] > 0.999999f);
}

void check_coincident() {
  const Surface surface = estimate(shapes::points("equal", 50, 1), 10, kInfinity, 1);
  for (std::size_t i = 0; i < 150; ++i) CHECK(surface.normals[i] == (i % 3 == 2 ? 1 : 0));
  for (const float entry : surface.covariances) CHECK(entry == 0);
}

void check_optional_outputs() {
  const std::vector<float> points = shapes::points("surface", 200, 3);
  const KdTree tree(points.data(), 200, 1);
  const Surface both = estimate(points, 10, kInfinity, 1);
  Surface apart{std::vector<float>(600), std::vector<float>(1200)};
  dlc::normals(tree, points.data(), 200, 10, kInfinity, apart.normals.data(), nullptr, 1);
  dlc::normals(tree, points.data(), 200, 10, kInfinity, nullptr, apart.covariances.data(), 1);
  CHECK(apart == both);
}

}  // namespace

int main() {
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 2, 3, 50, 2000}) {
      check_against_two_passes(shape, n, 20, kInfinity);
      check_against_two_passes(shape, n, 30, 0.06f);
    }
  check_against_two_passes("surface", 6000, 70, kInfinity);
  check_against_two_passes("surface", 100, 2, kInfinity);
  check_against_two_passes("surface", 100, 0, kInfinity);
  check_plane();
  check_coincident();
  check_optional_outputs();
  return failures() ? 1 : 0;
}
