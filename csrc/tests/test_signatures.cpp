// Signatures: finite, of unit length or nothing, the same for any number of threads, on clouds of every kind.
#include "core/signatures.hpp"

#include "check.hpp"
#include "core/kdtree.hpp"

namespace {

void check_shape(const std::string& shape, int64_t n) {
  const std::vector<float> points = shapes::points(shape, n, 3);
  std::vector<float> normals = shapes::points("uniform", n, 4);
  for (std::size_t i = 0; i < normals.size(); i += 3) {
    const float norm = std::sqrt(normals[i] * normals[i] + normals[i + 1] * normals[i + 1] + normals[i + 2] * normals[i + 2]);
    for (std::size_t a = 0; a < 3; ++a) normals[i + a] /= norm;
  }
  const dlc::KdTree tree(points.data(), n, 1);
  for (const bool oriented : {true, false})
    for (const float radius : {1e-22f, 1e-6f, 0.2f, 50.0f}) {
      const auto size = static_cast<std::size_t>(dlc::signature_size(oriented));
      std::vector<float> one(static_cast<std::size_t>(n) * size, -7), three(one);
      dlc::signatures(tree, points.data(), normals.data(), n, radius, oriented, one.data(), 1);
      dlc::signatures(tree, points.data(), normals.data(), n, radius, oriented, three.data(), 3);
      CHECK(one == three);  // not so if any is NaN
      bool some = false;
      for (std::size_t i = 0; i < one.size(); i += size) {
        double square = 0;
        for (std::size_t k = 0; k < size; ++k) {
          CHECK(one[i + k] >= 0);
          square += double(one[i + k]) * one[i + k];
        }
        CHECK(square == 0 || std::fabs(square - 1) < 1e-5);
        some |= square > 0;
      }
      if (shape == "uniform" && n > 100 && radius >= 0.2f) CHECK(some);
      if (shape == "equal") CHECK(!some);
    }
}

// Normals that are no unit vectors, so that cosines are infinite or no numbers, go into bins that are there.
void check_any_normals() {
  constexpr int64_t n = 40;
  const std::vector<float> points = shapes::points("uniform", n, 3);
  const dlc::KdTree tree(points.data(), n, 1);
  for (const float large : {3e38f, 1e19f, 1e-30f}) {
    std::vector<float> normals(3 * n, 0.0f);
    for (std::size_t i = 0; i < normals.size(); i += 3) normals[i] = normals[i + 1] = 2;
    normals[15] = large, normals[16] = -large;
    for (const bool oriented : {true, false}) {
      std::vector<float> rows(static_cast<std::size_t>(n * dlc::signature_size(oriented)), -7);
      dlc::signatures(tree, points.data(), normals.data(), n, 0.8f, oriented, rows.data(), 1);
      for (const float x : rows) CHECK(x >= 0 && x <= 1);
    }
  }
}

}  // namespace

int main() {
  check_any_normals();
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 4, 5, 300}) check_shape(shape, n);
  return failures() ? 1 : 0;
}
