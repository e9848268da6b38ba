// The energy and the step of a soft assignment against plain loops in double; both instruction sets; any threads.
#include "core/assignment.hpp"

#include <algorithm>

#include "check.hpp"
#include "core/linalg.hpp"
#include "core/simd.hpp"

namespace {

struct Clouds {
  std::vector<float> source, target, affinity, source_weight, target_weight;
  std::vector<float> source_features, target_features, source_bias, target_bias;  // of `factored` ones
  std::vector<double> poses, sharpness, outlier;
  int64_t num_poses, batch, n, m, channels = 0;
  bool factored = false;

  Clouds(int64_t num_poses, int64_t batch, int64_t n, int64_t m, double beta, double o, unsigned seed)
      : source(shapes::points("uniform", batch * n, seed)),
        target(shapes::points("uniform", batch * m, seed + 1)),
        affinity(batch * n * m),
        source_weight(batch * n, n ? 1.0f / static_cast<float>(n) : 0.0f),
        target_weight(batch * m, m ? 1.0f / static_cast<float>(m) : 0.0f),
        poses(num_poses * batch * 16),
        sharpness(batch, beta),
        outlier(batch, o),
        num_poses(num_poses), batch(batch), n(n), m(m) {
    std::mt19937 random(seed + 2);
    const auto unit = [&] { return (random() >> 8) / 16777216.0; };
    for (float& a : affinity) a = static_cast<float>(-4 * unit());
    // Points that answer one another, so that the shares hold the pose.
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t j = 0; j < std::min(n, m); ++j) {
        affinity[(b * n + j) * m + j] += 4;
        for (int c = 0; c < 3; ++c) target[3 * (b * m + j) + c] = source[3 * (b * n + j) + c] + 0.1f * c;
      }
    for (int64_t i = 0; i < num_poses * batch; ++i) {
      double twist[6];
      for (double& x : twist) x = 0.6 * unit() - 0.3;
      dlc::se3_exp(twist, poses.data() + 16 * i);
    }
  }

  // Affinities f_i . g_j + r_i + c_j; points that answer one another have the same features.
  void factor(int64_t width, unsigned seed) {
    factored = true, channels = width;
    std::mt19937 random(seed);
    const auto filled = [&](int64_t count, float low, float high) {
      std::vector<float> values(count);
      for (float& x : values) x = low + (high - low) * static_cast<float>((random() >> 8) / 16777216.0);
      return values;
    };
    source_features = filled(batch * n * channels, -1, 1), target_features = filled(batch * m * channels, -1, 1);
    source_bias = filled(batch * n, -2, 0), target_bias = filled(batch * m, -2, 0);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t common = std::min(n, m) * channels;
      std::copy_n(source_features.data() + b * n * channels, common, target_features.data() + b * m * channels);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
          double sum = source_bias[b * n + i] + target_bias[b * m + j];
          for (int64_t c = 0; c < channels; ++c)
            sum += static_cast<double>(source_features[(b * n + i) * channels + c]) *
                   target_features[(b * m + j) * channels + c];
          affinity[(b * n + i) * m + j] = static_cast<float>(sum);
        }
    }
  }

  dlc::AssignmentAffinity given() const {
    if (!factored) return {affinity.data()};
    return {source_features.data(), channels, target_features.data(), source_bias.data(), target_bias.data()};
  }

  // Takes the last `count` points of both clouds out, as a batch of clouds of several sizes does.
  void pad(int64_t count) {
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j)
          if (i >= n - count || j >= m - count) affinity[(b * n + i) * m + j] = dlc::kAbsent;
      for (int64_t i = n - count; factored && i < n; ++i) source_bias[b * n + i] = 2 * dlc::kAbsent;
      for (int64_t j = m - count; factored && j < m; ++j) target_bias[b * m + j] = j % 2 ? -HUGE_VALF : 2 * dlc::kAbsent;
      for (int64_t i = 0; i < n; ++i) source_weight[b * n + i] = i < n - count ? 1.0f / (n - count) : 0.0f;
      for (int64_t j = 0; j < m; ++j) target_weight[b * m + j] = j < m - count ? 1.0f / (m - count) : 0.0f;
    }
  }
};

struct Answer {
  std::vector<double> energy, poses;
  bool operator==(const Answer& other) const { return energy == other.energy && poses == other.poses; }
};

Answer native(const Clouds& c, bool both_ways, int threads, bool step = true) {
  Answer answer{std::vector<double>(c.num_poses * c.batch, -7), std::vector<double>(step ? c.poses.size() : 0, -7)};
  dlc::soft_assignment({c.source.data(), c.target.data(), c.given(), c.poses.data(), c.sharpness.data(),
                        c.outlier.data(), c.source_weight.data(), c.target_weight.data(), c.num_poses, c.batch, c.n,
                        c.m, both_ways},
                       answer.energy.data(), step ? answer.poses.data() : nullptr, threads);
  return answer;
}

// By definition: a matrix of logits, its sums along rows and columns, and the moments of the shares.
Answer plain(const Clouds& c, bool both_ways) {
  Answer answer{std::vector<double>(c.num_poses * c.batch), std::vector<double>(c.poses.size())};
  for (int64_t job = 0; job < c.num_poses * c.batch; ++job) {
    const int64_t b = job % c.batch;
    const double* t = c.poses.data() + 16 * job;
    std::vector<long double> e(c.n * c.m), rows(c.n), columns(c.m);
    const long double none = std::exp(static_cast<long double>(c.outlier[b]));
    std::fill(rows.begin(), rows.end(), none), std::fill(columns.begin(), columns.end(), none);
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t j = 0; j < c.m; ++j) {
        const float *p = &c.source[3 * (b * c.n + i)], *q = &c.target[3 * (b * c.m + j)];
        long double d2 = 0;
        for (int r = 0; r < 3; ++r) {
          const long double d = t[4 * r] * p[0] + t[4 * r + 1] * p[1] + t[4 * r + 2] * p[2] + t[4 * r + 3] - q[r];
          d2 += d * d;
        }
        const float a = c.affinity[(b * c.n + i) * c.m + j];
        e[i * c.m + j] = a <= dlc::kAbsent ? 0.0L : std::exp(a - c.sharpness[b] * d2);
        rows[i] += e[i * c.m + j], columns[j] += e[i * c.m + j];
      }
    const long double half = both_ways ? 0.5L : 1.0L;
    long double energy = 0;
    for (int64_t i = 0; i < c.n; ++i) energy -= half * c.source_weight[b * c.n + i] * std::log(rows[i]);
    for (int64_t j = 0; both_ways && j < c.m; ++j) energy -= half * c.target_weight[b * c.m + j] * std::log(columns[j]);
    answer.energy[job] = static_cast<double>(energy);
    double mass = 0, sum_p[3] = {}, sum_q[3] = {}, sum_qp[9] = {}, rotation[9], translation[3];
    for (int64_t i = 0; i < c.n; ++i)
      for (int64_t j = 0; j < c.m; ++j) {
        long double share = c.source_weight[b * c.n + i] / rows[i];
        if (both_ways) share += c.target_weight[b * c.m + j] / columns[j];
        const double w = static_cast<double>(half * share * e[i * c.m + j]);
        mass += w;
        for (int r = 0; r < 3; ++r) {
          sum_p[r] += w * c.source[3 * (b * c.n + i) + r], sum_q[r] += w * c.target[3 * (b * c.m + j) + r];
          for (int k = 0; k < 3; ++k)
            sum_qp[3 * r + k] += w * c.target[3 * (b * c.m + j) + r] * c.source[3 * (b * c.n + i) + k];
        }
      }
    dlc::procrustes(mass, sum_p, sum_q, sum_qp, rotation, translation);
    double* out = answer.poses.data() + 16 * job;
    for (int r = 0; r < 3; ++r) {
      std::copy(rotation + 3 * r, rotation + 3 * r + 3, out + 4 * r);
      out[4 * r + 3] = translation[r], out[12 + r] = 0;
    }
    out[15] = 1;
  }
  return answer;
}

double apart(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : 1e300;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::fabs(a[i] - b[i]) <= worst ? worst : std::fabs(a[i] - b[i]);
  return worst;
}

void check(const Clouds& clouds, double tolerance) {
  for (const bool both_ways : {false, true}) {
    const Answer found = native(clouds, both_ways, 1), expected = plain(clouds, both_ways);
    CHECK(apart(found.energy, expected.energy) < tolerance);
    CHECK(apart(found.poses, expected.poses) < tolerance);
    CHECK(native(clouds, both_ways, 1, false).energy == found.energy);
    for (const int threads : {2, 3}) CHECK(native(clouds, both_ways, threads) == found);
    dlc::set_use_avx2(false);
    CHECK(native(clouds, both_ways, 1) == found);
    dlc::set_use_avx2(true);
  }
}

void check_factors() {
  for (const int64_t n : {3, 8, 33, 70})  // below, at and above a group of rows and a block
    for (const int64_t m : {3, 8, 9, 77})
      for (const int64_t channels : {1, 5, 16}) {
        Clouds clouds(3, 2, n, m, 5, -4, 17);
        clouds.factor(channels, 19);
        check(clouds, 2e-5);
        if (n < 8 || m < 8) continue;
        clouds.pad(2);
        check(clouds, 2e-5);
      }
  for (const double o : {-300.0, -60.0, -30.0, 30.0}) {  // what is careful depends on the largest affinity
    Clouds clouds(37, 1, 20, 30, 20, o, 21);  // more poses than are taken at once
    clouds.factor(8, 23);
    check(clouds, 2e-5);
  }
  Clouds tall(3, 2, 2100, 20, 5, -4, 29);  // three strips of rows
  tall.factor(3, 31);
  check(tall, 2e-5);
  Clouds loose(1, 1, 20, 20, 5, -4, 25);  // lengths allow affinities of 1e6, of which there are none
  loose.factor(2, 27);
  for (int64_t i = 0; i < 20; ++i) {
    loose.source_features[2 * i] = loose.target_features[2 * i + 1] = 1e3f;
    loose.source_features[2 * i + 1] = loose.target_features[2 * i] = 0;
  }
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t j = 0; j < 20; ++j) loose.affinity[20 * i + j] = loose.source_bias[i] + loose.target_bias[j];
  check(loose, 2e-5);
}

// All weights fall below float32's: nothing explains anything, and nothing is known of the pose.
void check_far() {
  Clouds clouds(2, 1, 9, 10, 100, -6, 5);
  clouds.poses[3] = 1000;
  clouds.poses[7] = -50;
  const Answer found = native(clouds, true, 1);
  CHECK(std::fabs(found.energy[0] - 6) < 1e-6);  // the weights of the points are float32
  for (int r = 0; r < 4; ++r)
    for (int k = 0; k < 4; ++k) CHECK(found.poses[4 * r + k] == (r == k ? 1.0 : 0.0));
  CHECK(std::fabs(found.energy[1]) < 6);
}

}  // namespace

int main() {
  std::printf("instruction set: %s\n", dlc::simd_level());
  for (const int64_t n : {3, 8, 33, 70})
    for (const int64_t m : {3, 7, 8, 9, 64, 77})
      for (const double beta : {0.0, 1e-3, 1.0, 20.0}) check(Clouds(2, 2, n, m, beta, -6, 7), 2e-5);
  for (const double o : {-300.0, -60.0, -40.0, 0.0, 5.0, 30.0}) check(Clouds(1, 2, 40, 50, 20, o, 11), 2e-5);
  Clouds sharp(1, 1, 60, 60, 1e5, -20, 3);  // logits of hundreds: weights hold what float32 coordinates hold
  for (std::size_t i = 0; i < sharp.target.size(); ++i) sharp.target[i] = sharp.source[i] + (i % 2 ? 1e-3f : -1e-3f);
  const double nothing[6] = {};
  dlc::se3_exp(nothing, sharp.poses.data());
  check(sharp, 5e-4);
  Clouds padded(2, 2, 21, 30, 5, -4, 13);
  padded.pad(6);
  check(padded, 2e-5);
  check_factors();
  check_far();
  for (const int64_t n : {0, 1, 3})
    for (const int64_t m : {0, 1}) {
      Clouds clouds(2, 1, n, m, 1, -3, 1);
      const Answer found = native(clouds, true, 1);
      clouds.factor(0, 1);
      CHECK(native(clouds, true, 1).poses.size() == found.poses.size());
      if (m == 0 || n == 0) CHECK(native(clouds, true, 1) == found);
      for (const double x : found.poses) CHECK(std::isfinite(x));
      if (m == 0 || n == 0) CHECK(std::fabs(found.energy[0] - (n || m ? 1.5 : 0.0)) < 1e-6);
    }
  CHECK(native(Clouds(0, 2, 4, 4, 1, -3, 1), true, 1).energy.empty());
  CHECK(native(Clouds(2, 0, 4, 4, 1, -3, 1), true, 1).energy.empty());
  return failures() ? 1 : 0;
}
