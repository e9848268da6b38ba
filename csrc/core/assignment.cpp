#include "core/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/assignment_affinity.hpp"
#include "core/assignment_moments.hpp"
#include "core/assignment_row.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int64_t kLeastStrip = 1024, kMostStrips = 16;  // rows that a thread takes of a pair; a pair's parts
constexpr int64_t kPosesAtOnce = 16;   // that share a reading of the affinities, and hold memory meanwhile
constexpr double kCarefulBelow = 50;   // o further below the largest affinity needs the careful loop
constexpr double kLeastShift = -1000;  // well above kAbsent, so that absent pairs weigh exactly 0

// A pair of clouds, about their centres so that float32 holds them well, coordinate by coordinate.
struct Pair {
  double source_center[3] = {}, target_center[3] = {}, sharpness, outlier, shift;
  std::vector<float> source[3], target[3];  // the target is filled up to whole blocks with zeros
  PairAffinity affinity;
  const float *source_weight, *target_weight;
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

Pair make_pair(const AssignmentProblem& problem, int64_t b) {
  Pair pair;
  const int64_t n = pair.n = problem.n, m = pair.m = problem.m;
  pair.affinity = PairAffinity(problem.affinity, b, n, m);
  pair.source_weight = problem.source_weight + n * b;
  pair.target_weight = problem.target_weight + m * b;
  const int64_t padded = (m + kLanes - 1) / kLanes * kLanes;
  center(problem.source + 3 * n * b, pair.source_weight, n, n, pair.source_center, pair.source);
  center(problem.target + 3 * m * b, pair.target_weight, m, padded, pair.target_center, pair.target);
  pair.sharpness = problem.sharpness[b];
  pair.outlier = problem.outlier[b];
  const auto careful = [&](double top) { return pair.outlier < std::max(top, kLeastShift) - kCarefulBelow; };
  double top = pair.affinity.bound();
  if (careful(top)) top = pair.affinity.largest();  // a bound may be far too high
  pair.careful = careful(top);
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

// body(first, count, affinities of so many rows, `pair.affinity.stride()` apart) for rows [begin, end) in order.
template <class Body>
void each_block(const Pair& pair, int64_t begin, int64_t end, const Body& body) {
  std::vector<float> room(pair.affinity.room());
  for (int64_t first = begin; first < end; first += kAffinityRows) {
    const int64_t count = std::min(kAffinityRows, end - first);
    body(first, count, pair.affinity.rows(first, count, room.data()));
  }
}

// The energy of one pose and the moments of its shares, from rows in order, then other sweeps' rows, then the columns.
class Sweep {
 public:
  Sweep(const Pair& pair, const Pose& pose, bool both_ways, bool moments)
      : pair_(pair), pose_(pose), both_ways_(both_ways), with_moments_(moments), half_(both_ways ? 0.5 : 1.0),
        none_(std::max(std::exp(pair.outlier - pair.shift), std::numeric_limits<double>::min())),
        padded_(static_cast<int64_t>(pair.target[0].size())), kernel_(choose_assignment_row(both_ways, moments)),
        partial_(4 * padded_, 0.0f), columns_(4 * padded_, 0.0) {
    std::fill(tail_, tail_ + kLanes, kAbsent);
    row_.sharpness = static_cast<float>(pair.sharpness), row_.shift = static_cast<float>(pair.shift);
    for (int c = 0; c < 3; ++c) row_.target[c] = pair.target[c].data();
    for (int c = 0; c < 4; ++c) row_.columns[c] = partial_.data() + c * padded_;
  }

  void add_rows(int64_t first, int64_t count, const float* affinity) {
    for (int64_t r = 0; r < count; ++r) add_row(first + r, affinity + r * pair_.affinity.stride());
    if (!both_ways_) return;
    for (int64_t j = 0; j < 4 * padded_; ++j) columns_[j] += partial_[j];
    std::fill(partial_.begin(), partial_.end(), 0.0f);
  }

  void add(const Sweep& other) {
    energy += other.energy;
    moments.add(other.moments);
    for (int64_t j = 0; j < 4 * padded_; ++j) columns_[j] += other.columns_[j];
  }

  void add_columns() {
    if (!both_ways_) return;
    for (int64_t j = 0; j < pair_.m; ++j) {
      const double share = columns_[j], total = share + none_, weight = pair_.target_weight[j];
      energy -= half_ * weight * (std::log(total) + pair_.shift);
      if (!with_moments_) continue;
      const double share_p[3] = {columns_[padded_ + j], columns_[2 * padded_ + j], columns_[3 * padded_ + j]};
      const double q[3] = {pair_.target[0][j], pair_.target[1][j], pair_.target[2][j]};
      moments.add_column(half_ * weight / total, share, share_p, q);
    }
  }

  double energy = 0;
  ShareMoments moments;

 private:
  void add_row(int64_t i, const float* affinity) {
    const int64_t whole = pair_.m / kLanes * kLanes;
    const double p[3] = {pair_.source[0][i], pair_.source[1][i], pair_.source[2][i]};
    double moved[3];
    pose_.apply(p, moved);
    std::copy(moved, moved + 3, row_.moved);
    std::copy(p, p + 3, row_.source);
    row_.affinity = affinity;
    row_.blocks = whole / kLanes;
    AssignmentRowSums sums;
    kernel_(row_, sums);
    if (whole < pair_.m) {
      std::copy(affinity + whole, affinity + pair_.m, tail_);
      AssignmentRow last = row_.from_column(whole);
      last.affinity = tail_, last.blocks = 1;
      kernel_(last, sums);
    }
    const double share = sums.total(0), total = share + none_, weight = pair_.source_weight[i];
    energy -= half_ * weight * (std::log(total) + pair_.shift);
    if (!with_moments_) return;
    const double share_q[3] = {sums.total(1), sums.total(2), sums.total(3)};
    moments.add_row(half_ * weight / total, share, share_q, p);
  }

  const Pair& pair_;
  const Pose pose_;
  const bool both_ways_, with_moments_;
  const double half_, none_;
  const int64_t padded_;
  const AssignmentRowKernel kernel_;
  std::vector<float> partial_;  // coordinate by coordinate, of the rows that were added last
  std::vector<double> columns_;
  AssignmentRow row_{};
  float tail_[kLanes];
};

// log(sum exp) with its largest term apart; the outlier is the first term.
struct LogSum {
  explicit LogSum(double first) : top(first) {}
  void see(double x) { top = std::max(top, x); }
  void add(double x) { sum += std::exp(x - top); }
  double value() const { return top + std::log(sum); }
  double top, sum = 0;
};

// The same as `Sweep` in double, whatever the outlier level: every row and column has its own shift.
double careful_sweep(const Pair& pair, const Pose& pose, bool both_ways, ShareMoments* moments) {
  std::vector<LogSum> rows(pair.n, LogSum(pair.outlier)), columns(pair.m, LogSum(pair.outlier));
  const auto each = [&](const auto& body) {
    each_block(pair, 0, pair.n, [&](int64_t first, int64_t count, const float* affinity) {
      for (int64_t i = first; i < first + count; ++i, affinity += pair.affinity.stride()) {
        const double p[3] = {pair.source[0][i], pair.source[1][i], pair.source[2][i]};
        double moved[3];
        pose.apply(p, moved);
        for (int64_t j = 0; j < pair.m; ++j) {
          if (affinity[j] <= kAbsent) continue;
          const double q[3] = {pair.target[0][j], pair.target[1][j], pair.target[2][j]};
          const double d[3] = {moved[0] - q[0], moved[1] - q[1], moved[2] - q[2]};
          body(i, j, p, q, affinity[j] - pair.sharpness * dot(d, d));
        }
      }
    });
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

// Rows of a pair that are swept by themselves, so that threads can share a large one; a function of n alone.
int64_t strip_rows(int64_t n) {
  const int64_t rows = std::max(kLeastStrip, (n + kMostStrips - 1) / kMostStrips);
  return (rows + kAffinityRows - 1) / kAffinityRows * kAffinityRows;
}
int64_t strips_of(int64_t n) { return std::max<int64_t>(1, (n + strip_rows(n) - 1) / strip_rows(n)); }

// Poses [begin, end) of pair b.
void solve(const AssignmentProblem& problem, const Pair& pair, int64_t b, int64_t begin, int64_t end, double* energy,
           double* poses_after, int num_threads) {
  const auto answer = [&](int64_t k, double value, const ShareMoments& moments) {
    const int64_t job = k * problem.batch + b;
    energy[job] = value;
    if (poses_after) fit_pose(moments, pair.source_center, pair.target_center, poses_after + 16 * job);
  };
  const auto pose = [&](int64_t k) { return Pose(problem.poses + 16 * (k * problem.batch + b), pair); };
  if (pair.careful) {
    for (int64_t k = begin; k < end; ++k) {
      ShareMoments moments;
      const double value = careful_sweep(pair, pose(k), problem.both_ways, poses_after ? &moments : nullptr);
      answer(k, value, moments);
    }
    return;
  }
  std::vector<std::vector<Sweep>> strips(static_cast<std::size_t>(strips_of(pair.n)));
  parallel_for(strips_of(pair.n), 1, num_threads, [&](int64_t number, int64_t) {
    std::vector<Sweep>& sweeps = strips[static_cast<std::size_t>(number)];
    sweeps.reserve(static_cast<std::size_t>(end - begin));
    for (int64_t k = begin; k < end; ++k) sweeps.emplace_back(pair, pose(k), problem.both_ways, poses_after != nullptr);
    const int64_t first_row = number * strip_rows(pair.n), last_row = std::min(first_row + strip_rows(pair.n), pair.n);
    each_block(pair, first_row, last_row, [&](int64_t first, int64_t count, const float* affinity) {
      for (Sweep& sweep : sweeps) sweep.add_rows(first, count, affinity);
    });
  });
  for (std::size_t k = 0; k < strips[0].size(); ++k) {
    Sweep& sweep = strips[0][k];
    for (std::size_t number = 1; number < strips.size(); ++number) sweep.add(strips[number][k]);
    sweep.add_columns();
    answer(begin + static_cast<int64_t>(k), sweep.energy, sweep.moments);
  }
}

}  // namespace

void soft_assignment(const AssignmentProblem& problem, double* energy, double* poses_after, int num_threads) {
  if (problem.num_poses * problem.batch == 0) return;
  std::vector<Pair> pairs(static_cast<std::size_t>(problem.batch));
  parallel_for(problem.batch, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) pairs[b] = make_pair(problem, b);
  });
  // As many poses share a reading of the affinities as leave work for every thread. No sum depends on it.
  const int64_t threads = num_threads > 0 ? num_threads : hardware_threads();
  const bool large = strips_of(problem.n) > 1;  // its strips are shared out, one job after another
  const int64_t parts = threads == 1 || large ? 1 : (2 * threads + problem.batch - 1) / problem.batch;
  const int64_t together = std::clamp<int64_t>((problem.num_poses + parts - 1) / parts, 1, kPosesAtOnce);
  const int64_t jobs = (problem.num_poses + together - 1) / together * problem.batch;
  parallel_for(jobs, large ? jobs : 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t b = job % problem.batch, first = job / problem.batch * together;
      const int64_t last = std::min(first + together, problem.num_poses);
      solve(problem, pairs[b], b, first, last, energy, poses_after, num_threads);
    }
  });
}

}  // namespace dlc
