#include "core/normals.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/kdtree.hpp"
#include "core/morton.hpp"
#include "core/neighbourhood.hpp"
#include "core/parallel.hpp"

namespace dlc {

void normals(const KdTree& tree, const float* points, int64_t n, int k, float max_distance, float* normals,
             float* covariances, int num_threads) {
  const int room = static_cast<int>(std::clamp<int64_t>(k, 0, tree.size()));
  const float limit = squared_limit(max_distance);
  for_each_run(points, n, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    int count[kRun];
    index.resize(static_cast<std::size_t>(run * room));
    d2.resize(static_cast<std::size_t>(run * room));
    tree.knn_of_each(near, run, room, limit, index.data(), d2.data(), count);
    for (int64_t i = 0; i < run; ++i) {
      Spread spread;
      for (int j = 0; j < count[i]; ++j)
        spread.add(tree.point(index[static_cast<std::size_t>(i * room + j)]), near + 3 * i);
      double covariance[6];
      spread.covariance(covariance);
      if (normals) normal_of(covariance, normals + 3 * at[i]);
      if (covariances) std::copy(covariance, covariance + 6, covariances + 6 * at[i]);
    }
  });
}

void normals_of_rows(const float* points, int64_t m, const int64_t* rows, int64_t batch, int64_t n, int k,
                     float* normals, int num_threads) {
  constexpr int64_t kGrain = 256;
  parallel_for(batch * n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      normal_of_rows(points + 3 * m * (i / n), m, rows + i * k, k, normals + 3 * i);
  });
}

}  // namespace dlc
