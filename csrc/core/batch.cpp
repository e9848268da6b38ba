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
  for_each_run(queries, m, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    if (k == 1) {
      int32_t index[kRun];
      float d2[kRun];
      tree.nearest_of_each(near, run, limit, index, d2);
      for (int64_t i = 0; i < run; ++i) {
        distances[at[i]] = std::sqrt(d2[i]);
        indices[at[i]] = index[i];
      }
      return;
    }
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    int count[kRun];
    const int room = static_cast<int>(std::min<int64_t>(k, tree.size()));
    index.resize(static_cast<std::size_t>(run * room));
    d2.resize(static_cast<std::size_t>(run * room));
    tree.knn_of_each(near, run, room, limit, index.data(), d2.data(), count);
    for (int64_t i = 0; i < run; ++i) {
      float* const row_distances = distances + at[i] * k;
      int64_t* const row_indices = indices + at[i] * k;
      for (int j = 0; j < count[i]; ++j) {
        row_distances[j] = std::sqrt(d2[static_cast<std::size_t>(i * room + j)]);
        row_indices[j] = index[static_cast<std::size_t>(i * room + j)];
      }
      std::fill(row_distances + count[i], row_distances + k, std::numeric_limits<float>::infinity());
      std::fill(row_indices + count[i], row_indices + k, int64_t{-1});
    }
  });
}

int64_t radius_count(const KdTree& tree, const float* queries, int64_t m, float radius, int64_t* splits,
                     int num_threads) {
  const float limit = squared_limit(radius);
  splits[0] = 0;
  for_each_run(queries, m, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    for (int64_t i = 0; i < run; ++i) splits[at[i] + 1] = tree.count(near + 3 * i, limit);
  });
  for (int64_t i = 0; i < m; ++i) splits[i + 1] += splits[i];
  return splits[m];
}

void radius_fill(const KdTree& tree, const float* queries, int64_t m, float radius, const int64_t* splits,
                 float* distances, int64_t* indices, int num_threads) {
  const float limit = squared_limit(radius);
  for_each_run(queries, m, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    thread_local std::vector<std::pair<float, int32_t>> found;
    for (int64_t i = 0; i < run; ++i) {
      tree.radius(near + 3 * i, limit, found);
      int64_t next = splits[at[i]];
      for (const auto& [d2, index] : found) {
        distances[next] = std::sqrt(d2);
        indices[next++] = index;
      }
    }
  });
}

}  // namespace dlc
