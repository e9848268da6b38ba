#include "core/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/assignment_moments.hpp"
#include "core/assignment_row.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int kLanes = kAssignmentLanes;
constexpr int64_t kRowsInFloat = 32;   // rows summed in float32 before their sums go to double
constexpr double kCarefulBelow = 50;   // o further below the largest affinity needs the careful loop
constexpr double kLeastShift = -1000;  // well above kAbsent, so that absent pairs weigh exactly 0
constexpr double kNoMass = 1e-19;      // shares that sum to less say nothing about the pose

// A pair of clouds, about their centres so that float32 holds them well, coordinate by coordinate.
struct Pair {
  double source_center[3] = {}, target_center[3] = {}, sharpness, outlier, shift;
  std::vector<float> source[3], target[3];  // the target is filled up to whole blocks with zeros
  const float *affinity, *source_weight, *target_weight;
  int64_t n, m;
  bool careful;
};

// The centre is that of the points with a weight: what padding holds does not matter.
void center(const float* points, const float* weights, int64_t n, int64_t padded, double mean[3],
            std::vector<float> out[3]) {
  double count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!(weights[i] > 0.0f)) continue;
    count += 1;
    for (int c = 0; c < 3; ++c) mean[c] += points[3 * i + c];
  }
  for (int c = 0; c < 3; ++c) {
    if (count > 0) mean[c] /= count;
    out[c].assign(static_cast<std::size_t>(padded), 0.0f);
    for (int64_t i = 0; i < n; ++i) out[c][i] = static_cast<float>(points[3 * i + c] - mean[c]);
  }
}

// The largest of count numbers, lane by lane so that the compiler vectorises it.
float largest(const float* values, int64_t count) {
  float best[kLanes];
  std::fill(best, best + kLanes, kAbsent);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = best[l] < values[i + l] ? values[i + l] : best[l];
  for (; i < count; ++i) best[0] = best[0] < values[i] ? values[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

Pair make_pair(const AssignmentProblem& problem, int64_t b) {
  Pair pair;
  const int64_t n = pair.n = problem.n, m = pair.m = problem.m;
  pair.affinity = problem.affinity + n * m * b;
  pair.source_weight = problem.source_weight + n * b;
  pair.target_weight = problem.target_weight + m * b;
  const int64_t padded = (m + kLanes - 1) / kLanes * kLanes;
  center(problem.source + 3 * n * b, pair.source_weight, n, n, pair.source_center, pair.source);
  center(problem.target + 3 * m * b, pair.target_weight, m, padded, pair.target_center, pair.target);
  pair.sharpness = problem.sharpness[b];
  pair.outlier = problem.outlier[b];
  const double top = largest(pair.affinity, n * m);
  pair.careful = pair.outlier < std::max(top, kLeastShift) - kCarefulBelow;
  pair.shift = std::max({pair.outlier, top, kLeastShift});
  // as a float, and not below any affinity
  pair.shift = std::nextafter(static_cast<float>(pair.shift), std::numeric_limits<float>::infinity());
  return pair;
}

struct Pose {
  double rotation[9], moved_center[3];  // of a centred source point: rotation p + moved_center, a centred target point
  Pose(const double* t, const Pair& pair) {
    for (int r = 0; r < 3; ++r) {
      for (int c = 0; c < 3; ++c) rotation[3 * r + c] = t[4 * r + c];
      moved_center[r] = dot(rotation + 3 * r, pair.source_center) + t[4 * r + 3] - pair.target_center[r];
    }
  }
  void apply(const double p[3], double out[3]) const {
    for (int r = 0; r < 3; ++r) out[r] = dot(rotation + 3 * r, p) + moved_center[r];
  }
};

// The energy of one pose; adds the shares' moments where they are wanted.
double sweep(const Pair& pair, const Pose& pose, bool both_ways, ShareMoments* moments) {
  const AssignmentRowKernel kernel = choose_assignment_row(both_ways, moments != nullptr);
  const int64_t padded = static_cast<int64_t>(pair.target[0].size()), whole = pair.m / kLanes * kLanes;
  const double none = std::max(std::exp(pair.outlier - pair.shift), std::numeric_limits<double>::min());
  const double half = both_ways ? 0.5 : 1.0;
  std::vector<float> partial(4 * padded, 0.0f);  // of up to kRowsInFloat rows
  std::vector<double> columns(4 * padded, 0.0);
  float tail[kLanes];
  std::fill(tail, tail + kLanes, kAbsent);
  AssignmentRow row{};
  row.sharpness = static_cast<float>(pair.sharpness), row.shift = static_cast<float>(pair.shift);
  for (int c = 0; c < 3; ++c) row.target[c] = pair.target[c].data();
  for (int c = 0; c < 4; ++c) row.columns[c] = partial.data() + c * padded;
  double energy = 0;
  for (int64_t i = 0; i < pair.n; ++i) {
    const double p[3] = {pair.source[0][i], pair.source[1][i], pair.source[2][i]};
    double moved[3];
    pose.apply(p, moved);
    std::copy(moved, moved + 3, row.moved);
    std::copy(p, p + 3, row.source);
    row.affinity = pair.affinity + i * pair.m;
    row.blocks = whole / kLanes;
    AssignmentRowSums sums;
    kernel(row, sums);
    if (whole < pair.m) {
      std::copy(row.affinity + whole, row.affinity + pair.m, tail);
      AssignmentRow last = row.from_column(whole);
      last.affinity = tail, last.blocks = 1;
      kernel(last, sums);
    }
    const double share = sums.total(0), total = share + none, weight = pair.source_weight[i];
    energy -= half * weight * (std::log(total) + pair.shift);
    if (moments) {
      const double share_q[3] = {sums.total(1), sums.total(2), sums.total(3)};
      moments->add_row(half * weight / total, share, share_q, p);
    }
    if (both_ways && ((i + 1) % kRowsInFloat == 0 || i + 1 == pair.n)) {
      for (int64_t j = 0; j < 4 * padded; ++j) columns[j] += partial[j];
      std::fill(partial.begin(), partial.end(), 0.0f);
    }
  }
  if (!both_ways) return energy;
  for (int64_t j = 0; j < pair.m; ++j) {
    const double share = columns[j], total = share + none, weight = pair.target_weight[j];
    energy -= half * weight * (std::log(total) + pair.shift);
    if (moments) {
      const double share_p[3] = {columns[padded + j], columns[2 * padded + j], columns[3 * padded + j]};
      const double q[3] = {pair.target[0][j], pair.target[1][j], pair.target[2][j]};
      moments->add_column(half * weight / total, share, share_p, q);
    }
  }
  return energy;
}

// log(sum exp) with its largest term apart; the outlier is the first term.
struct LogSum {
  explicit LogSum(double first) : top(first) {}
  void see(double x) { top = std::max(top, x); }
  void add(double x) { sum += std::exp(x - top); }
  double value() const { return top + std::log(sum); }
  double top, sum = 0;
};

// The same as `sweep` in double, whatever the outlier level: every row and column has its own shift.
double careful_sweep(const Pair& pair, const Pose& pose, bool both_ways, ShareMoments* moments) {
  std::vector<LogSum> rows(pair.n, LogSum(pair.outlier)), columns(pair.m, LogSum(pair.outlier));
  const auto each = [&](const auto& body) {
    for (int64_t i = 0; i < pair.n; ++i) {
      const double p[3] = {pair.source[0][i], pair.source[1][i], pair.source[2][i]};
      double moved[3];
      pose.apply(p, moved);
      for (int64_t j = 0; j < pair.m; ++j) {
        const float a = pair.affinity[i * pair.m + j];
        if (a <= kAbsent) continue;
        const double q[3] = {pair.target[0][j], pair.target[1][j], pair.target[2][j]};
        const double d[3] = {moved[0] - q[0], moved[1] - q[1], moved[2] - q[2]};
        body(i, j, p, q, a - pair.sharpness * dot(d, d));
      }
    }
  };
  each([&](int64_t i, int64_t j, const double*, const double*, double logit) {
    rows[i].see(logit), columns[j].see(logit);
  });
  for (LogSum& row : rows) row.add(pair.outlier);
  for (LogSum& column : columns) column.add(pair.outlier);
  each([&](int64_t i, int64_t j, const double*, const double*, double logit) {
    rows[i].add(logit), columns[j].add(logit);
  });
  const double half = both_ways ? 0.5 : 1.0;
  double energy = 0;
  for (int64_t i = 0; i < pair.n; ++i) energy -= half * pair.source_weight[i] * rows[i].value();
  for (int64_t j = 0; both_ways && j < pair.m; ++j) energy -= half * pair.target_weight[j] * columns[j].value();
  if (!moments) return energy;
  each([&](int64_t i, int64_t j, const double* p, const double* q, double logit) {
    double share = pair.source_weight[i] * std::exp(logit - rows[i].value());
    if (both_ways) share += pair.target_weight[j] * std::exp(logit - columns[j].value());
    moments->add_row(half * share, 1.0, q, p);
  });
  return energy;
}

}  // namespace

void soft_assignment(const AssignmentProblem& problem, double* energy, double* poses_after, int num_threads) {
  if (problem.num_poses == 0) return;
  std::vector<Pair> pairs(static_cast<std::size_t>(problem.batch));
  parallel_for(problem.batch, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) pairs[b] = make_pair(problem, b);
  });
  parallel_for(problem.num_poses * problem.batch, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const Pair& pair = pairs[job % problem.batch];
      const Pose pose(problem.poses + 16 * job, pair);
      ShareMoments moments;
      ShareMoments* wanted = poses_after ? &moments : nullptr;
      energy[job] = pair.careful ? careful_sweep(pair, pose, problem.both_ways, wanted)
                                 : sweep(pair, pose, problem.both_ways, wanted);
      if (poses_after) fit_pose(moments, pair.source_center, pair.target_center, poses_after + 16 * job);
    }
  });
}

}  // namespace dlc
