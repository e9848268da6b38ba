// Batched ICP: known motions, the same bits for any threads and batch, masks, and pairs from which nothing can be had.
#include "core/icp_batch.hpp"

#include <algorithm>

#include "check.hpp"
#include "core/linalg.hpp"

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Batch {
  std::vector<float> source, target;
  std::vector<uint8_t> source_mask, target_mask;
  std::vector<double> start, truth;
  int64_t batch, n, m;

  // Pairs of one surface and the same moved by a known pose; the source is the first n of the m points.
  Batch(int64_t batch, int64_t n, int64_t m, float offset)
      : truth(16 * batch), batch(batch), n(n), m(m) {
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<float> q = shapes::points("surface", m, 10 + static_cast<unsigned>(b));
      for (float& x : q) x += offset;
      const double twist[6] = {0.06, -0.04, 0.01 * b, 0.03, 0.01, -0.02};
      double* t = truth.data() + 16 * b;
      dlc::se3_exp(twist, t);
      // It turns about where the surface lies.
      for (int r = 0; r < 3; ++r) t[4 * r + 3] += offset * (1 - t[4 * r] - t[4 * r + 1] - t[4 * r + 2]);
      for (int64_t i = 0; i < n; ++i)
        for (int c = 0; c < 3; ++c) {  // R^T (q - t)
          double p = 0;
          for (int r = 0; r < 3; ++r) p += t[4 * r + c] * (q[3 * i + r] - t[4 * r + 3]);
          source.push_back(static_cast<float>(p));
        }
      target.insert(target.end(), q.begin(), q.end());
    }
  }
};

struct Answer {
  explicit Answer(int64_t batch) : poses(16 * batch, -7), fitness(batch, -7), rmse(batch, -7), iterations(batch, -7) {}
  bool operator==(const Answer& o) const {
    return poses == o.poses && fitness == o.fitness && rmse == o.rmse && iterations == o.iterations &&
           std::equal(converged, converged + fitness.size(), o.converged);
  }
  std::vector<double> poses, fitness, rmse;
  std::vector<int64_t> iterations;
  bool converged[64] = {};
};

template <class T>
const T* data(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

Answer solve(const Batch& x, dlc::Kind kind, int threads, float max_distance = 0.3f, int64_t max_iterations = 60) {
  Answer answer(x.batch);
  dlc::icp_batch({kind, x.source.data(), x.target.data(), data(x.source_mask), data(x.target_mask), data(x.start),
                  x.batch, x.n, x.m, max_distance, max_iterations, 1e-6, 20},
                 {answer.poses.data(), answer.fitness.data(), answer.rmse.data(), answer.iterations.data(),
                  answer.converged},
                 threads);
  return answer;
}

bool close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  return std::equal(a.begin(), a.end(), b.begin(), [&](double x, double y) { return std::fabs(x - y) < tolerance; });
}

void check_known_motions(dlc::Kind kind, float offset, double tolerance) {
  const Batch x(5, 300, 400, offset);
  const Answer found = solve(x, kind, 1);
  CHECK(close(found.poses, x.truth, tolerance));
  for (int64_t b = 0; b < x.batch; ++b) {
    CHECK(found.converged[b]);
    CHECK(found.fitness[b] == 1.0);
    CHECK(found.rmse[b] < tolerance);
    CHECK(found.iterations[b] >= 2);
  }
  for (const int threads : {2, 3, 16}) CHECK(solve(x, kind, threads) == found);
}

// What the masks hide changes nothing, not even the bits.
void check_masks() {
  const Batch whole(2, 200, 260, 0);
  Batch padded = whole;
  padded.n = 250, padded.m = 300;
  padded.source.clear(), padded.target.clear();
  const auto pad = [](const std::vector<float>& rows, int64_t b, int64_t n, int64_t room, auto& out, auto& mask) {
    int64_t taken = 0;
    for (int64_t i = 0; i < room; ++i) {
      const bool real = i % 3 != 1 ? taken < n : room - i <= n - taken;
      for (int c = 0; c < 3; ++c) out.push_back(real ? rows[3 * (b * n + taken) + c] : kNaN);
      mask.push_back(real);
      taken += real;
    }
    CHECK(taken == n);
  };
  for (int64_t b = 0; b < 2; ++b) {
    pad(whole.source, b, whole.n, padded.n, padded.source, padded.source_mask);
    pad(whole.target, b, whole.m, padded.m, padded.target, padded.target_mask);
  }
  for (const auto kind : {dlc::Kind::kPointToPoint, dlc::Kind::kPointToPlane})
    CHECK(solve(padded, kind, 2) == solve(whole, kind, 1));
}

void check_hopeless(const Batch& x, float max_distance = 0.3f) {
  for (const auto kind : {dlc::Kind::kPointToPoint, dlc::Kind::kPointToPlane}) {
    const Answer found = solve(x, kind, 2, max_distance);
    for (int64_t b = 0; b < x.batch; ++b) {
      CHECK(!found.converged[b]);
      CHECK(found.fitness[b] == 0 && found.rmse[b] == 0);
      for (int i = 0; i < 16; ++i)
        CHECK(found.poses[16 * b + i] == (x.start.empty() ? (i % 5 ? 0.0 : 1.0) : x.start[16 * b + i]));
    }
  }
}

// Gauss-Newton has no unique step on a plane; the least one leaves sliding alone.
void check_plane() {
  Batch x(1, 200, 200, 0);
  x.source = shapes::points("plane", 200, 1), x.target = shapes::points("plane", 200, 2);
  for (std::size_t i = 1; i < x.source.size(); i += 3) x.source[i] += 0.1f;
  const Answer found = solve(x, dlc::Kind::kPointToPlane, 1);
  CHECK(found.converged[0]);
  for (int i = 0; i < 16; ++i) CHECK(std::fabs(found.poses[i] - (i == 7 ? -0.1 : i % 5 ? 0.0 : 1.0)) < 1e-6);
}

}  // namespace

int main() {
  check_known_motions(dlc::Kind::kPointToPlane, 0, 1e-5);
  check_known_motions(dlc::Kind::kPointToPoint, 0, 1e-5);
  check_known_motions(dlc::Kind::kPointToPlane, 100, 1e-2);  // turning moves what is far: 1e-5 of a radian counts here
  check_masks();
  check_plane();
  for (const int64_t n : {0, 1, 2}) {
    check_hopeless(Batch(2, n, 50, 0));
    check_hopeless(Batch(2, n, n, 0));
  }
  Batch far(3, 50, 60, 0);
  check_hopeless(far, 1e-9f);
  for (int64_t b = 0; b < 3; ++b)
    far.start.insert(far.start.end(), {0, -1, 0, 1e3, 1, 0, 0, -5, 0, 0, 1, 0, 0, 0, 0, 1});
  check_hopeless(far);
  Batch huge(1, 50, 60, 0);
  for (float& v : huge.source) v *= 1e38f;
  for (float& v : huge.target) v *= 1e38f;
  for (const auto kind : {dlc::Kind::kPointToPoint, dlc::Kind::kPointToPlane})
    for (const double v : solve(huge, kind, 1, shapes::kInfinity).poses) CHECK(std::isfinite(v));
  CHECK(solve(Batch(0, 4, 4, 0), dlc::Kind::kPointToPlane, 2).poses.empty());
  return failures() ? 1 : 0;
}
