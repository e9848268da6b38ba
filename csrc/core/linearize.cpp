#include "core/linearize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/correspondence.hpp"
#include "core/kdtree.hpp"
#include "core/lanes.hpp"
#include "core/parallel.hpp"
#include "core/search_memory.hpp"
#include "core/simd.hpp"

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

// Four correspondences that wait until they are complete.
struct Waiting {
  int count = 0;
  int64_t i[Lanes::kCount], j[Lanes::kCount];
  double p[Lanes::kCount][3];

  void push(int64_t source, int64_t target, const double moved[3]) {
    i[count] = source, j[count] = target;
    std::copy(moved, moved + 3, p[count++]);
  }
  void take(int axis, Lanes& out) const {
    for (int lane = 0; lane < Lanes::kCount; ++lane) out.v[lane] = p[lane][axis];
  }
};

template <int width>
void gather(const float* rows, const int64_t at[Lanes::kCount], Lanes out[width]) {
  for (int c = 0; c < width; ++c)
    for (int lane = 0; lane < Lanes::kCount; ++lane) out[c].v[lane] = rows[width * at[lane] + c];
}

// add_correspondence of four at once, with squares. False where one of them has no inverse covariance: nothing is added.
template <Kind kind>
bool add_four(const CorrespondingClouds& clouds, const Pose& pose, const Waiting& four, Lanes* sums, Lanes& distance2) {
  Lanes p[3], q[3], d[3], mahalanobis[6];
  for (int a = 0; a < 3; ++a) four.take(a, p[a]);
  gather<3>(clouds.target, four.j, q);
  for (int a = 0; a < 3; ++a) d[a] = p[a] - q[a];
  if constexpr (kind == Kind::kGeneralized) {
    Lanes of_source[6], covariance[6], of_target[6];
    gather<6>(clouds.source_covariances, four.i, of_source);
    gather<6>(clouds.target_covariances, four.j, of_target);
    rotate_symmetric3(pose.rotation, of_source, covariance);
    for (int a = 0; a < 6; ++a) covariance[a] += of_target[a];
    if (!invert_symmetric3(covariance, mahalanobis)) return false;
    add_mahalanobis(p, d, mahalanobis, sums);
  }
  if constexpr (kind == Kind::kPointToPoint) add_point_to_point(Kernel::kL2, 1.0, p, q, sums);
  if constexpr (kind == Kind::kPointToPlane || kind == Kind::kSymmetric) {
    Lanes normal[3];
    gather<3>(clouds.target_normals, four.j, normal);
    if constexpr (kind == Kind::kSymmetric) {
      Lanes own[3], turned[3];
      gather<3>(clouds.source_normals, four.i, own);
      for (int r = 0; r < 3; ++r) turned[r] = dot(pose.rotation + 3 * r, own);
      add_symmetric(Kernel::kL2, 1.0, p, q, turned, normal, sums);
    } else {
      add_point_to_plane(Kernel::kL2, 1.0, p, q, normal, sums);
    }
  }
  if constexpr (kind == Kind::kColored) {
    Lanes normal[3], source[1], target[4];
    gather<3>(clouds.target_normals, four.j, normal);
    gather<1>(clouds.source_intensities, four.i, source);
    gather<4>(clouds.target_intensities, four.j, target);
    add_colored(Kernel::kL2, 1.0, clouds.lambda_geometric, p, q, normal, source[0], target, sums);
  }
  for (int a = 0; a < 3; ++a) {
    sums[kSourceSum + a] += p[a];
    sums[kTargetSum + a] += q[a];
  }
  distance2 = dot(d, d);
  sums[kSquaredDistance] += distance2;
  sums[kCount] += 1.0;
  return true;
}

// The kind and "is it L2" are compile-time constants in the loop over points.
template <Kind kind, bool robust>
Sums accumulate(const LinearizeProblem& problem, const Pose& pose, float limit, int64_t begin, int64_t end) {
  Sums sums;
  Lanes lanes[kSums];
  Waiting waiting;
  const Kernel kernel = robust ? problem.kernel : Kernel::kL2;
  const double parameter = problem.kernel_parameter;
  float* const distances = problem.tree ? nullptr : problem.distances;
  const CorrespondingClouds clouds{problem.source,
                                   problem.source_normals,
                                   problem.source_covariances,
                                   problem.target,
                                   problem.target_normals,
                                   problem.target_covariances,
                                   problem.source_intensities,
                                   problem.target_intensities,
                                   problem.lambda_geometric};
  const auto one_by_one = [&] {
    for (int w = 0; w < waiting.count; ++w) {
      const double distance2 =
          add_correspondence<kind>(clouds, pose, kernel, parameter, waiting.i[w], waiting.j[w], waiting.p[w], sums.values);
      if (distances) distances[waiting.i[w]] = static_cast<float>(std::sqrt(distance2));
    }
    waiting.count = 0;
  };
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
        if (distances) distances[i] = std::numeric_limits<float>::infinity();
        if (!std::isfinite(p[0] + p[1] + p[2])) sums.values[kCost] = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      waiting.push(i, j, p);
      Lanes distance2;
      if (!robust && waiting.count < Lanes::kCount) continue;
      if (!robust && add_four<kind>(clouds, pose, waiting, lanes, distance2)) {
        for (int lane = 0; lane < waiting.count && distances; ++lane)
          distances[waiting.i[lane]] = static_cast<float>(std::sqrt(distance2[lane]));
        waiting.count = 0;
      } else {
        one_by_one();
      }
    }
  }
  one_by_one();
  for (int s = 0; s < kSums; ++s) sums.values[s] += lanes[s].sum();
  return sums;
}

#if DLC_HAS_AVX2
template <Kind kind>
__attribute__((target("avx2"), flatten)) Sums accumulate_avx2(const LinearizeProblem& problem, const Pose& pose,
                                                              float limit, int64_t begin, int64_t end) {
  return accumulate<kind, false>(problem, pose, limit, begin, end);
}
#endif

template <Kind kind>
Sums reduce(const LinearizeProblem& problem, int num_threads) {
  const Pose pose(problem.transform);
  const float limit = squared_limit(problem.max_distance);
  return parallel_reduce<Sums>(problem.n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    if (problem.kernel != Kernel::kL2) return accumulate<kind, true>(problem, pose, limit, begin, end);
#if DLC_HAS_AVX2
    if (use_avx2()) return accumulate_avx2<kind>(problem, pose, limit, begin, end);
#endif
    return accumulate<kind, false>(problem, pose, limit, begin, end);
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
    case Kind::kColored: total = reduce<Kind::kColored>(problem, num_threads); break;
  }
  std::copy(total.values, total.values + kSums, sums);
}

}  // namespace dlc
