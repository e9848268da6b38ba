#include "core/normals.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/kdtree.hpp"
#include "core/linalg.hpp"
#include "core/morton.hpp"

namespace dlc {
namespace {

// Covariance of the tree's points about their mean, relative to `centre` so that nothing cancels far from the origin.
void covariance_of(const KdTree& tree, const float* centre, const int32_t* index, int count, double out[6]) {
  double mean[3] = {0, 0, 0}, square[6] = {0, 0, 0, 0, 0, 0};
  for (int j = 0; j < count; ++j) {
    const float* p = tree.point(index[j]);
    const double x = static_cast<double>(p[0]) - centre[0], y = static_cast<double>(p[1]) - centre[1],
                 z = static_cast<double>(p[2]) - centre[2];
    mean[0] += x, mean[1] += y, mean[2] += z;
    square[0] += x * x, square[1] += x * y, square[2] += x * z;
    square[3] += y * y, square[4] += y * z, square[5] += z * z;
  }
  const double scale = 1.0 / count;
  for (double& m : mean) m *= scale;
  out[0] = square[0] * scale - mean[0] * mean[0], out[1] = square[1] * scale - mean[0] * mean[1];
  out[2] = square[2] * scale - mean[0] * mean[2], out[3] = square[3] * scale - mean[1] * mean[1];
  out[4] = square[4] * scale - mean[1] * mean[2], out[5] = square[5] * scale - mean[2] * mean[2];
}

void normal_of(const double covariance[6], float out[3]) {
  double vectors[9] = {0, 0, 1}, values[3];
  if (covariance[0] + covariance[3] + covariance[5] > 0) eig3(covariance, values, vectors);
  int largest = 0;
  for (int a = 1; a < 3; ++a)
    if (std::fabs(vectors[a]) > std::fabs(vectors[largest])) largest = a;
  const double sign = vectors[largest] < 0 ? -1 : 1;
  for (int a = 0; a < 3; ++a) out[a] = static_cast<float>(sign * vectors[a]);
}

}  // namespace

void normals(const KdTree& tree, const float* points, int64_t n, int k, float max_distance, float* normals,
             float* covariances, int num_threads) {
  const int room = static_cast<int>(std::clamp<int64_t>(k, 0, tree.size()));
  const float limit = squared_limit(max_distance);
  for_each_point(points, n, num_threads, [&](int64_t i) {
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    index.resize(static_cast<std::size_t>(room));
    d2.resize(static_cast<std::size_t>(room));
    const int count = tree.knn(points + 3 * i, room, limit, index.data(), d2.data());
    double covariance[6] = {0, 0, 0, 0, 0, 0};
    if (count >= 3) covariance_of(tree, points + 3 * i, index.data(), count, covariance);
    if (normals) normal_of(covariance, normals + 3 * i);
    if (covariances) std::copy(covariance, covariance + 6, covariances + 6 * i);
  });
}

}  // namespace dlc
