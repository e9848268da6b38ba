#include "core/linearize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/correspondence.hpp"
#include "core/kdtree.hpp"
#include "core/parallel.hpp"
#include "core/search_memory.hpp"

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

constexpr int64_t kRun = SearchMemory::kRun;
static_assert(kGrain % kRun == 0, "a run belongs to one block");

// The nearest target points of moved source points (m, 3), m <= kRun, which begin at `first` in the problem's arrays.
void search(const LinearizeProblem& problem, const double (*moved)[3], float limit, int64_t first, int64_t m,
                int32_t* nearest) {
  float queries[3 * kRun] = {}, d2[kRun];
  for (int64_t i = 0; i < m; ++i)
    for (int a = 0; a < 3; ++a) queries[3 * i + a] = static_cast<float>(moved[i][a]);
  if (problem.memory) {
    problem.memory->nearest_of_run(*problem.tree, first, queries, m, limit, nearest, d2);
  } else {
    problem.tree->nearest_of_each(queries, m, limit, nearest, d2);
  }
  for (int64_t i = 0; i < m; ++i) {
    if (problem.indices) problem.indices[first + i] = nearest[i];
    if (problem.distances) problem.distances[first + i] = std::sqrt(d2[i]);
  }
}

// The kind and "is it L2" are compile-time constants in the loop over points.
template <Kind kind, bool robust>
Sums accumulate(const LinearizeProblem& problem, const Pose& pose, float limit, int64_t begin, int64_t end) {
  Sums sums;
  const Kernel kernel = robust ? problem.kernel : Kernel::kL2;
  const double parameter = problem.kernel_parameter;
  const CorrespondingClouds clouds{problem.source, problem.source_normals, problem.source_covariances,
                                   problem.target, problem.target_normals, problem.target_covariances};
  double moved[kRun][3];
  int32_t nearest[kRun];
  for (int64_t run = begin; run < end; run += kRun) {
    const int64_t m = std::min(kRun, end - run);
    for (int64_t i = 0; i < m; ++i) pose.apply(problem.source + 3 * (run + i), moved[i]);
    if (problem.tree) search(problem, moved, limit, run, m, nearest);
    for (int64_t i = run; i < run + m; ++i) {
      const double* const p = moved[i - run];
      const int64_t j = problem.tree ? nearest[i - run] : problem.indices[i];
      if (j < 0) {
        if (!problem.tree && problem.distances) problem.distances[i] = std::numeric_limits<float>::infinity();
        if (!std::isfinite(p[0] + p[1] + p[2])) sums.values[kCost] = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      const double distance2 = add_correspondence<kind>(clouds, pose, kernel, parameter, i, j, p, sums.values);
      if (!problem.tree && problem.distances) problem.distances[i] = static_cast<float>(std::sqrt(distance2));
    }
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
