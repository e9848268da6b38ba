#include "core/icp_batch.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/correspondence.hpp"
#include "core/icp_step.hpp"
#include "core/kdtree.hpp"
#include "core/linearize.hpp"
#include "core/morton.hpp"
#include "core/normals.hpp"
#include "core/parallel.hpp"
#include "core/search_memory.hpp"

namespace dlc {
namespace {

constexpr int64_t kLeastPoints = 3;

struct Cloud {  // the points that the mask leaves, about their mean
  Cloud(const float* rows, const uint8_t* mask, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      if (!mask || mask[i]) points.insert(points.end(), rows + 3 * i, rows + 3 * i + 3);
    for (std::size_t i = 0; i < points.size(); ++i) mean[i % 3] += points[i];
    for (double& x : mean) x /= static_cast<double>(std::max<int64_t>(1, size()));
    for (std::size_t i = 0; i < points.size(); ++i) points[i] = static_cast<float>(points[i] - mean[i % 3]);
  }
  int64_t size() const { return static_cast<int64_t>(points.size() / 3); }

  std::vector<float> points;
  double mean[3] = {0, 0, 0};
};

double diagonal(const Cloud& cloud) {
  float lo[3], hi[3];
  bounding_box(cloud.points.data(), cloud.size(), lo, hi);
  const double d[3] = {hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]};
  return std::sqrt(dot(d, d));
}

struct Evaluation {
  double count() const { return sums[kCount]; }
  double rmse() const { return count() > 0 ? std::sqrt(sums[kSquaredDistance] / count()) : 0.0; }
  double sums[kSums];
};

struct Pair {
  Pair(const IcpBatchProblem& problem, const Cloud& source, const Cloud& target)
      : tree(target.points.data(), target.size(), 1),
        matches(static_cast<std::size_t>(source.size()), -1),
        remembered(SearchMemory::bytes(source.size()) / sizeof(float)),
        memory(remembered.data(), source.size()),
        limit(squared_limit(problem.max_distance)),
        neighbours(problem.neighbours) {
    if (problem.kind == Kind::kPointToPlane) target_normals.resize(target.points.size());  // zeros
    equations.kind = problem.kind;
    equations.source = source.points.data(), equations.n = source.size();
    equations.target = target.points.data(), equations.target_normals = target_normals.data();
    equations.kernel = Kernel::kL2, equations.kernel_parameter = 1.0;
    equations.indices = matches.data();
  }

  Evaluation evaluate(const double transform[16]) {
    constexpr int64_t kRun = SearchMemory::kRun;
    const Pose pose(transform);
    for (int64_t first = 0; first < equations.n; first += kRun) {
      const int64_t m = std::min(kRun, equations.n - first);
      float queries[3 * kRun], d2[kRun];
      int32_t found[kRun];
      for (int64_t i = 0; i < m; ++i) {
        double moved[3];
        pose.apply(equations.source + 3 * (first + i), moved);
        for (int a = 0; a < 3; ++a) queries[3 * i + a] = static_cast<float>(moved[a]);
      }
      memory.nearest_of_run(tree, first, queries, m, limit, found, d2);
      for (int64_t i = 0; i < m; ++i) {
        matches[static_cast<std::size_t>(first + i)] = found[i];
        if (found[i] >= 0 && equations.kind == Kind::kPointToPlane) need_normal(found[i]);
      }
    }
    equations.transform = transform;
    Evaluation evaluation;
    linearize(equations, evaluation.sums, 1);
    return evaluation;
  }

  // A normal costs as much as ten searches, and some points are never matched.
  void need_normal(int64_t j) {
    float* const normal = target_normals.data() + 3 * j;
    if (normal[0] != 0 || normal[1] != 0 || normal[2] != 0) return;
    normals(tree, equations.target + 3 * j, 1, neighbours, std::numeric_limits<float>::infinity(), normal, nullptr, 1);
  }

  KdTree tree;
  std::vector<float> target_normals;
  std::vector<int64_t> matches;
  std::vector<float> remembered;
  SearchMemory memory;
  float limit;
  int neighbours;
  LinearizeProblem equations{};
};

// The translation of a pose between clouds about their means from (sign = 1) or to (-1) that of the clouds as they are.
void shift(const Cloud& source, const Cloud& target, double sign, double pose[16]) {
  for (int r = 0; r < 3; ++r) pose[4 * r + 3] += sign * (dot(pose + 4 * r, source.mean) - target.mean[r]);
}

void register_pair(const IcpBatchProblem& problem, const IcpBatchAnswer& answer, int64_t b) {
  double* const pose = answer.poses + 16 * b;
  for (int i = 0; i < 16; ++i) pose[i] = problem.start ? problem.start[16 * b + i] : (i % 5 ? 0.0 : 1.0);
  answer.fitness[b] = answer.rmse[b] = 0.0;
  answer.iterations[b] = 0;
  answer.converged[b] = false;
  const auto mask = [b](const uint8_t* masks, int64_t n) { return masks ? masks + b * n : nullptr; };
  const Cloud source(problem.source + 3 * b * problem.n, mask(problem.source_mask, problem.n), problem.n);
  const Cloud target(problem.target + 3 * b * problem.m, mask(problem.target_mask, problem.m), problem.m);
  if (std::min(source.size(), target.size()) < kLeastPoints) return;

  Pair pair(problem, source, target);
  double omega[16], next[16];
  std::copy(pose, pose + 16, omega);
  shift(source, target, 1.0, omega);
  Evaluation now = pair.evaluate(omega);
  const double size = static_cast<double>(source.size()), extent = diagonal(target);
  bool converged = false;
  int64_t taken = 0;
  while (taken < problem.max_iterations && !converged && now.count() > 0) {
    if (!icp_step(problem.kind, now.sums, omega, next)) break;
    std::copy(next, next + 12, omega);
    ++taken;
    const Evaluation after = pair.evaluate(omega);
    converged = std::fabs(after.count() - now.count()) / size < problem.tolerance &&
                std::fabs(after.rmse() - now.rmse()) < problem.tolerance * extent;
    now = after;
  }
  answer.iterations[b] = taken;
  if (!(now.count() > 0)) return;
  answer.fitness[b] = now.count() / size;
  answer.rmse[b] = now.rmse();
  answer.converged[b] = converged;
  if (taken == 0) return;
  shift(source, target, -1.0, omega);
  std::copy(omega, omega + 12, pose);
}

}  // namespace

void icp_batch(const IcpBatchProblem& problem, const IcpBatchAnswer& answer, int num_threads) {
  parallel_for(problem.batch, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) register_pair(problem, answer, b);
  });
}

}  // namespace dlc
