// Many queries at once: KdTree's declarations of knn, radius_count and radius_fill.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "core/kdtree.hpp"
#include "core/morton.hpp"

namespace dlc {
void knn(const KdTree& tree, const float* queries, int64_t m, int k, float max_distance, float* distances,
         int64_t* indices, int num_threads) {
  if (k <= 0) return;
  const float limit = squared_limit(max_distance);
  const auto write = [&](int64_t i, const int32_t* index, const float* d2, int count) {
    for (int j = 0; j < count; ++j) {
      distances[i * k + j] = std::sqrt(d2[j]);
      indices[i * k + j] = index[j];
    }
    std::fill(distances + i * k + count, distances + (i + 1) * k, std::numeric_limits<float>::infinity());
    std::fill(indices + i * k + count, indices + (i + 1) * k, int64_t{-1});
  };
  for_each_point(queries, m, num_threads, [&](int64_t i) {
    if (k == 1) {
      int32_t index = 0;
      float d2 = 0;
      const bool found = tree.nearest(queries + 3 * i, limit, index, d2);
      return write(i, &index, &d2, found ? 1 : 0);
    }
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    const std::size_t room = static_cast<std::size_t>(std::min<int64_t>(k, tree.size()));
    index.resize(room);
    d2.resize(room);
    write(i, index.data(), d2.data(), tree.knn(queries + 3 * i, k, limit, index.data(), d2.data()));
  });
}

int64_t radius_count(const KdTree& tree, const float* queries, int64_t m, float radius, int64_t* splits,
                     int num_threads) {
  const float limit = squared_limit(radius);
  splits[0] = 0;
  for_each_point(queries, m, num_threads, [&](int64_t i) { splits[i + 1] = tree.count(queries + 3 * i, limit); });
  for (int64_t i = 0; i < m; ++i) splits[i + 1] += splits[i];
  return splits[m];
}

void radius_fill(const KdTree& tree, const float* queries, int64_t m, float radius, const int64_t* splits,
                 float* distances, int64_t* indices, int num_threads) {
  const float limit = squared_limit(radius);
  for_each_point(queries, m, num_threads, [&](int64_t i) {
    thread_local std::vector<std::pair<float, int32_t>> near;
    tree.radius(queries + 3 * i, limit, near);
    int64_t at = splits[i];
    for (const auto& [d2, index] : near) {
      distances[at] = std::sqrt(d2);
      indices[at++] = index;
    }
  });
}

}  // namespace dlc
