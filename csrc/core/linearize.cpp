#include "core/linearize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

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

struct Pose {
  explicit Pose(const double* t) {
    for (int r = 0; r < 3; ++r) {
      for (int c = 0; c < 3; ++c) rotation[3 * r + c] = t[4 * r + c];
      translation[r] = t[4 * r + 3];
    }
  }
  void rotate(const float* v, double out[3]) const {
    for (int r = 0; r < 3; ++r) out[r] = rotation[3 * r] * v[0] + rotation[3 * r + 1] * v[1] + rotation[3 * r + 2] * v[2];
  }
  void apply(const float* v, double out[3]) const {
    rotate(v, out);
    for (int r = 0; r < 3; ++r) out[r] += translation[r];
  }
  double rotation[9], translation[3];
};

void widen(const float* from, int n, double* to) { std::copy(from, from + n, to); }

// The kind and "is it L2" are compile-time constants in the loop over points.
template <Kind kind, bool robust>
Sums accumulate(const LinearizeProblem& problem, const Pose& pose, float limit, int64_t begin, int64_t end) {
  Sums sums;
  const Kernel kernel = robust ? problem.kernel : Kernel::kL2;
  const double parameter = problem.kernel_parameter;
  for (int64_t i = begin; i < end; ++i) {
    double p[3], q[3];
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
    widen(problem.target + 3 * j, 3, q);
    double distance2 = 0.0;
    for (int a = 0; a < 3; ++a) {
      distance2 += (p[a] - q[a]) * (p[a] - q[a]);
      sums.values[kSourceSum + a] += p[a];
      sums.values[kTargetSum + a] += q[a];
    }
    sums.values[kCount] += 1.0;
    sums.values[kSquaredDistance] += distance2;
    if (!problem.tree && problem.distances) problem.distances[i] = static_cast<float>(std::sqrt(distance2));

    if constexpr (kind == Kind::kPointToPoint) {
      add_point_to_point(kernel, parameter, p, q, sums.values);
    } else if constexpr (kind == Kind::kPointToPlane) {
      double normal[3];
      widen(problem.target_normals + 3 * j, 3, normal);
      add_point_to_plane(kernel, parameter, p, q, normal, sums.values);
    } else if constexpr (kind == Kind::kSymmetric) {
      double source_normal[3], target_normal[3];
      pose.rotate(problem.source_normals + 3 * i, source_normal);
      widen(problem.target_normals + 3 * j, 3, target_normal);
      add_symmetric(kernel, parameter, p, q, source_normal, target_normal, sums.values);
    } else {
      double source_covariance[6], covariance[6];
      widen(problem.source_covariances + 6 * i, 6, source_covariance);
      rotate_symmetric3(pose.rotation, source_covariance, covariance);
      for (int a = 0; a < 6; ++a) covariance[a] += problem.target_covariances[6 * j + a];
      add_generalized(kernel, parameter, p, q, covariance, sums.values);
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
