#include "core/linearize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/correspondence.hpp"
#include "core/kdtree.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int64_t kGrain = 1024;  // correspondences in a partial sum

struct Sums {
  double values[kSums] = {};
  Sums& operator+=(const Sums& other) {
    for (int i = 0; i < kSums; ++i) values[i] += other.values[i];
    return *this;
  }
};

// The kind and "is it L2" are compile-time constants in the loop over points.
template <Kind kind, bool robust>
Sums accumulate(const LinearizeProblem& problem, const Pose& pose, float limit, int64_t begin, int64_t end) {
  Sums sums;
  const Kernel kernel = robust ? problem.kernel : Kernel::kL2;
  const double parameter = problem.kernel_parameter;
  const CorrespondingClouds clouds{problem.source, problem.source_normals, problem.source_covariances,
                                   problem.target, problem.target_normals, problem.target_covariances};
  for (int64_t i = begin; i < end; ++i) {
    double p[3];
    pose.apply(problem.source + 3 * i, p);
    int64_t j = -1;
    if (problem.tree) {
      const float query[3] = {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2])};
      int32_t found = -1;
      float d2 = std::numeric_limits<float>::infinity();
      if (problem.tree->nearest(query, limit, found, d2)) j = found;
      if (problem.indices) problem.indices[i] = j;
      if (problem.distances) problem.distances[i] = std::sqrt(d2);
    } else {
      j = problem.indices[i];
    }
    if (j < 0) {
      if (!problem.tree && problem.distances) problem.distances[i] = std::numeric_limits<float>::infinity();
      if (!std::isfinite(p[0] + p[1] + p[2])) sums.values[kCost] = std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    const double distance2 = add_correspondence<kind>(clouds, pose, kernel, parameter, i, j, p, sums.values);
    if (!problem.tree && problem.distances) problem.distances[i] = static_cast<float>(std::sqrt(distance2));
  }
  return sums;
}

template <Kind kind>
Sums reduce(const LinearizeProblem& problem, int num_threads) {
  const Pose pose(problem.transform);
  const float limit = squared_limit(problem.max_distance);
  return parallel_reduce<Sums>(problem.n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    return problem.kernel == Kernel::kL2 ? accumulate<kind, false>(problem, pose, limit, begin, end)
                                         : accumulate<kind, true>(problem, pose, limit, begin, end);
  });
}

}  // namespace

void linearize(const LinearizeProblem& problem, double* sums, int num_threads) {
  Sums total;
  switch (problem.kind) {
    case Kind::kPointToPoint: total = reduce<Kind::kPointToPoint>(problem, num_threads); break;
    case Kind::kPointToPlane: total = reduce<Kind::kPointToPlane>(problem, num_threads); break;
    case Kind::kSymmetric: total = reduce<Kind::kSymmetric>(problem, num_threads); break;
    case Kind::kGeneralized: total = reduce<Kind::kGeneralized>(problem, num_threads); break;
  }
  std::copy(total.values, total.values + kSums, sums);
}

}  // namespace dlc
