// Soft assignment by the CUDA kernels, run on the host: against the CPU core, and the gradient against a plain double
// loop over all pairs of points.
#include <algorithm>

#include "check.hpp"
#include "core/assignment.hpp"
#include "core/linalg.hpp"
#include "cuda/device.hpp"

namespace {

struct Case {
  Case(int64_t num_poses, int64_t batch, int64_t n, int64_t m, bool both_ways, double level, unsigned seed) {
    const float unit = 1.0f;
    std::mt19937 random(seed);
    const auto uniform = [&] { return static_cast<float>(random() >> 8) / 16777216.0f; };
    source = shapes::points("surface", batch * n, seed), target = shapes::points("surface", batch * m, seed + 1);
    for (float& x : source) x += 100.0f;  // far from the origin
    for (float& x : target) x += 50.0f;
    for (int64_t i = 0; i < batch * n * m; ++i) affinity.push_back(-2 * uniform() - (i % 17 == 0 ? 3e4f : 0.0f));
    for (int64_t i = 0; i < batch * n; ++i) source_weight.push_back(i % 9 == 4 ? 0.0f : unit / static_cast<float>(n));
    for (int64_t i = 0; i < batch * m; ++i) target_weight.push_back(i % 7 == 4 ? 0.0f : unit / static_cast<float>(m));
    for (int64_t b = 0; b < batch; ++b) sharpness.push_back(3 + 10 * uniform()), outlier.push_back(level - uniform());
    for (int64_t k = 0; k < num_poses * batch; ++k) {
      double xi[6], pose[16];
      for (double& x : xi) x = 0.02 * uniform();
      dlc::se3_exp(xi, pose);
      for (int r = 0; r < 3; ++r) pose[4 * r + 3] += 50 - 100 * (pose[4 * r] + pose[4 * r + 1] + pose[4 * r + 2]);
      poses.insert(poses.end(), pose, pose + 16);
    }
    strip = std::max<int64_t>(1, n);
    problem = {source.data(), target.data(), {affinity.data()}, poses.data(), sharpness.data(), outlier.data(),
               source_weight.data(), target_weight.data(), num_poses, batch, n, m, both_ways};
  }
  // The affinities f_i . g_j + r_i + c_j instead, whose matrix is given 32 rows at a time.
  Case& factor(int64_t channels, unsigned seed) {
    const dlc::AssignmentProblem& p = problem;
    std::mt19937 random(seed);
    const auto filled = [&](int64_t count) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& x : values) x = static_cast<float>(random() >> 8) / 16777216.0f - 0.5f;
      return values;
    };
    source_features = filled(p.batch * p.n * channels), target_features = filled(p.batch * p.m * channels);
    source_bias = filled(p.batch * p.n), target_bias = filled(p.batch * p.m);
    for (std::size_t i = 4; i < source_bias.size(); i += 9) source_bias[i] = -3e4f;  // padding
    for (std::size_t j = 4; j < target_bias.size(); j += 7) target_bias[j] = -HUGE_VALF;
    for (int64_t row = 0; row < p.batch * p.n; ++row)
      for (int64_t j = 0; j < p.m; ++j) {
        const int64_t column = row / p.n * p.m + j;
        double sum = static_cast<double>(source_bias[static_cast<std::size_t>(row)]) +
                     target_bias[static_cast<std::size_t>(column)];
        for (int64_t c = 0; c < channels; ++c)
          sum += static_cast<double>(source_features[static_cast<std::size_t>(row * channels + c)]) *
                 target_features[static_cast<std::size_t>(column * channels + c)];
        affinity[static_cast<std::size_t>(row * p.m + j)] = static_cast<float>(sum);
      }
    strip = 32;
    problem.affinity = {source_features.data(), channels, target_features.data(), source_bias.data(),
                        target_bias.data()};
    return *this;
  }

  // Rows [first, first + strip) of the matrices.
  std::vector<float> rows(int64_t first) const {
    std::vector<float> some;
    for (int64_t b = 0; b < problem.batch; ++b)
      for (int64_t i = first; i < std::min(first + strip, problem.n); ++i) {
        const auto row = affinity.begin() + (b * problem.n + i) * problem.m;
        some.insert(some.end(), row, row + problem.m);
      }
    return some;
  }

  std::vector<float> source, target, affinity, source_weight, target_weight;
  std::vector<float> source_features, target_features, source_bias, target_bias;
  std::vector<double> poses, sharpness, outlier;
  dlc::AssignmentProblem problem;
  int64_t strip;
};

struct Forward {
  Forward(const Case& c, bool moments)
      : energy(static_cast<std::size_t>(c.problem.num_poses * c.problem.batch), -7), poses(16 * energy.size(), -7),
        row_logs(energy.size() * static_cast<std::size_t>(c.problem.n), -7),
        column_logs(energy.size() * static_cast<std::size_t>(c.problem.m), -7) {
    const dlc::AssignmentProblem& p = c.problem;
    std::vector<double> scratch(dlc::cuda::assignment_bytes(p, c.strip, moments) / 8 + 2, std::nan(""));
    for (int64_t first = 0; first < p.n; first += c.strip)
      dlc::cuda::assignment_sweep({0, nullptr}, p, c.strip, moments, c.rows(first).data(), first, scratch.data());
    dlc::cuda::assignment_finish(
        {0, nullptr}, p, c.strip,
        {energy.data(), moments ? poses.data() : nullptr, row_logs.data(), column_logs.data()}, scratch.data());
  }
  std::vector<double> energy, poses;
  std::vector<float> row_logs, column_logs;
};

bool near(double found, double expected, double tolerance) {
  return std::fabs(found - expected) <= tolerance * (1 + std::fabs(expected));
}

void check_forward(const Case& c) {
  const dlc::AssignmentProblem& p = c.problem;
  const std::size_t jobs = static_cast<std::size_t>(p.num_poses * p.batch);
  std::vector<double> energy(jobs), poses(16 * jobs);
  dlc::soft_assignment(p, energy.data(), poses.data(), 1);
  const Forward with(c, true), without(c, false);
  for (std::size_t i = 0; i < jobs; ++i) {
    CHECK(near(with.energy[i], energy[i], 3e-6));
    CHECK(near(without.energy[i], energy[i], 3e-6));
    for (std::size_t a = 0; a < 16; ++a) CHECK(std::fabs(with.poses[16 * i + a] - poses[16 * i + a]) < (a % 4 == 3 ? 3e-3 : 2e-5));
  }
}

// dL/dl_ij of one job in double, with what the logits are made of.
struct Pair {
  double d, distance2, moved[3], q[3];
};
std::vector<Pair> pairs_of(const Case& c, int64_t job, double weight) {
  const dlc::AssignmentProblem& p = c.problem;
  const int64_t b = job % p.batch, n = p.n, m = p.m;
  std::vector<Pair> pairs(static_cast<std::size_t>(n * m));
  std::vector<double> logits(pairs.size());
  std::vector<double> rows(static_cast<std::size_t>(n), std::exp(p.outlier[b]));
  std::vector<double> columns(static_cast<std::size_t>(m), std::exp(p.outlier[b]));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      const std::size_t at = static_cast<std::size_t>(i * m + j);
      Pair& pair = pairs[at];
      pair.distance2 = 0;
      for (int a = 0; a < 3; ++a) {
        const double* row = p.poses + 16 * job + 4 * a;
        const float* s = p.source + 3 * (n * b + i);
        pair.moved[a] = row[0] * s[0] + row[1] * s[1] + row[2] * s[2] + row[3];
        pair.q[a] = p.target[3 * (m * b + j) + a];
        pair.distance2 += (pair.moved[a] - pair.q[a]) * (pair.moved[a] - pair.q[a]);
      }
      const double affinity = c.affinity[static_cast<std::size_t>((n * b + i) * m + j)];
      logits[at] = affinity <= dlc::kAbsent ? -1e9 : affinity - p.sharpness[b] * pair.distance2;
      rows[static_cast<std::size_t>(i)] += std::exp(logits[at]);
      columns[static_cast<std::size_t>(j)] += std::exp(logits[at]);
    }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      const std::size_t at = static_cast<std::size_t>(i * m + j);
      double share = p.source_weight[n * b + i] * std::exp(logits[at]) / rows[static_cast<std::size_t>(i)];
      if (p.both_ways)
        share = (share + p.target_weight[m * b + j] * std::exp(logits[at]) / columns[static_cast<std::size_t>(j)]) / 2;
      pairs[at].d = -weight * share;
    }
  return pairs;
}

void check_gradient(const Case& c) {
  const dlc::AssignmentProblem& p = c.problem;
  const int64_t jobs = p.num_poses * p.batch, n = p.n, m = p.m;
  const Forward forward(c, false);
  const dlc::cuda::AssignmentParts parts = dlc::cuda::assignment_parts(p, c.strip);
  const auto room = [](int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<float> affinity(room(p.batch * n * m), -7), rows(room(jobs * parts.chunks * n * 4), -7),
      columns(room(jobs * parts.tiles * m * 4), -7);
  std::vector<double> spread(room(jobs * parts.chunks * parts.tiles), -7), centers(room(6 * p.batch)), weights,
      scratch(dlc::cuda::assignment_gradient_bytes(p) / 8 + 2, std::nan(""));
  for (int64_t job = 0; job < jobs; ++job) weights.push_back(0.3 + 0.1 * static_cast<double>(job));
  for (int64_t first = 0; first < n; first += c.strip) {
    std::vector<float> strip = c.rows(first), by_strip(strip.size(), -7);
    dlc::cuda::assignment_gradient({0, nullptr}, p, c.strip, strip.data(), first,
                                   {weights.data(), forward.row_logs.data(), forward.column_logs.data(),
                                    by_strip.data(), rows.data(), columns.data(), spread.data(), centers.data()},
                                   scratch.data());
    const int64_t count = std::min(c.strip, n - first) * m;
    for (int64_t b = 0; b < p.batch; ++b)
      std::copy_n(by_strip.begin() + b * count, count, affinity.begin() + (b * n + first) * m);
  }
  std::vector<double> expected_affinity(affinity.size(), 0.0);
  for (int64_t job = 0; job < jobs; ++job) {
    const int64_t b = job % p.batch;
    const std::vector<Pair> pairs = pairs_of(c, job, weights[room(job)]);
    double expected_spread = 0, found_spread = 0;
    std::vector<double> expected_rows(room(n * 4), 0.0), expected_columns(room(m * 4), 0.0);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j) {
        const Pair& pair = pairs[room(i * m + j)];
        expected_affinity[room((n * b + i) * m + j)] += pair.d;
        expected_spread += pair.d * pair.distance2;
        expected_rows[room(4 * i)] += pair.d, expected_columns[room(4 * j)] += pair.d;
        for (int a = 0; a < 3; ++a) {
          const double center = centers[room(6 * b + 3 + a)];
          expected_rows[room(4 * i + 1 + a)] += pair.d * (pair.q[a] - center);
          expected_columns[room(4 * j + 1 + a)] += pair.d * (pair.moved[a] - center);
        }
      }
    for (int64_t part = 0; part < parts.chunks * parts.tiles; ++part)
      found_spread += spread[room(job * parts.chunks * parts.tiles + part)];
    CHECK(near(found_spread, expected_spread, 1e-5));
    for (int64_t i = 0; i < 4 * n; ++i) {
      double found = 0;
      for (int64_t part = 0; part < parts.chunks; ++part) found += rows[room((job * parts.chunks + part) * n * 4 + i)];
      CHECK(std::fabs(found - expected_rows[room(i)]) < 2e-5 / static_cast<double>(n));
    }
    for (int64_t j = 0; j < 4 * m; ++j) {
      double found = 0;
      for (int64_t part = 0; part < parts.tiles; ++part) found += columns[room((job * parts.tiles + part) * m * 4 + j)];
      CHECK(std::fabs(found - expected_columns[room(j)]) < 2e-5 / static_cast<double>(m));
    }
  }
  double largest = 0;
  for (const double x : expected_affinity) largest = std::max(largest, std::fabs(x));
  CHECK(largest > 0);
  for (std::size_t i = 0; i < affinity.size(); ++i) CHECK(std::fabs(affinity[i] - expected_affinity[i]) < 3e-5 * largest);
}

}  // namespace

int main() {
  unsigned seed = 0;
  for (const bool both_ways : {true, false})
    for (const double level : {-2.0, -30.0, -120.0}) {  // the last is beyond float32: the careful kernel
      check_forward({2, 3, 40, 30, both_ways, level, seed++});
      check_forward({1, 2, 70, 700, both_ways, level, seed++});  // two chunks of columns, three tiles of rows
      check_gradient({2, 3, 40, 30, both_ways, level, seed++});
      check_gradient({3, 1, 70, 600, both_ways, level, seed++});
      check_forward(Case(2, 3, 40, 30, both_ways, level, seed++).factor(5, seed));
      check_forward(Case(1, 2, 70, 700, both_ways, level, seed++).factor(8, seed));
      check_gradient(Case(2, 3, 70, 600, both_ways, level, seed++).factor(5, seed));
    }
  check_forward({1, 1, 1, 1, true, -1, seed++});
  check_forward({133, 4, 40, 5, true, -1, seed++});  // one tile for all rows
  check_forward(Case(133, 4, 40, 5, true, -1, seed++).factor(3, seed));
  Case broken(1, 1, 20, 20, true, -1, seed);
  broken.affinity[5] = std::nanf("");
  CHECK(std::isnan(Forward(broken, false).energy[0]));
  return failures();
}
