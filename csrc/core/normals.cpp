#include "core/normals.hpp"

#include <algorithm>

#include "core/neighbourhood.hpp"
#include "core/neighbours.hpp"
#include "core/parallel.hpp"

namespace dlc {

void normals(const KdTree& tree, const float* points, int64_t n, int k, float max_distance, float* normals,
             float* covariances, int num_threads) {
  const auto measure = [&](int64_t at, const float* point, const Neighbours& near) {
    Spread spread;
    for (int j = 0; j < near.count; ++j) spread.add(tree.point(near.index[j]), point);
    double covariance[6];
    spread.covariance(covariance);
    if (normals) normal_of(covariance, normals + 3 * at);
    if (covariances) std::copy(covariance, covariance + 6, covariances + 6 * at);
  };
  for_each_neighbourhood(tree, points, n, k, max_distance, num_threads, measure);
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
