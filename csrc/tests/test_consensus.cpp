// A planted pose among outliers, matches that tell nothing, and the same bits for any number of threads.
#include "core/consensus.hpp"

#include "check.hpp"
#include "core/linalg.hpp"

namespace {

using Floats = std::vector<float>;

struct Proposals {
  std::vector<double> poses;
  std::vector<int64_t> support;

  bool operator==(const Proposals& other) const { return poses == other.poses && support == other.support; }
};

Proposals propose(const Floats& p, const Floats& q, dlc::ConsensusOptions options, int threads = 1) {
  const auto seeds = static_cast<std::size_t>(options.max_seeds);
  Proposals out{std::vector<double>(16 * seeds, -7), std::vector<int64_t>(seeds, -7)};
  const int64_t count = dlc::propose_poses(p.data(), q.data(), static_cast<int64_t>(p.size() / 3), options,
                                           out.poses.data(), out.support.data(), threads);
  CHECK(count >= 0 && count <= options.max_seeds);
  out.poses.resize(static_cast<std::size_t>(16 * count));
  out.support.resize(static_cast<std::size_t>(count));
  return out;
}

// The first `inliers` of the matches obey the pose, the others nothing.
void plant(int64_t n, int64_t inliers, const double pose[16], Floats& p, Floats& q) {
  p = shapes::points("uniform", n, 11);
  const Floats lost = shapes::points("uniform", n, 12);
  q.assign(p.size(), 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    const float* from = static_cast<int64_t>(i) < inliers ? &p[3 * i] : &lost[3 * i];
    for (std::size_t r = 0; r < 3; ++r)
      q[3 * i + r] = static_cast<float>(pose[4 * r] * from[0] + pose[4 * r + 1] * from[1] + pose[4 * r + 2] * from[2] +
                                        pose[4 * r + 3]);
  }
}

void check_planted(int64_t n, int64_t inliers) {
  const double xi[6] = {0.9, -1.1, 0.4, 3, -2, 1};
  double pose[16];
  dlc::se3_exp(xi, pose);
  Floats p, q;
  plant(n, inliers, pose, p, q);
  const Proposals found = propose(p, q, {0.02, 300, 30});
  for (const int threads : {2, 3}) CHECK(propose(p, q, {0.02, 300, 30}, threads) == found);
  CHECK(!found.support.empty());
  if (found.support.empty()) return;
  CHECK(found.support[0] >= inliers);
  for (std::size_t i = 0; i < 16; ++i) CHECK(std::fabs(found.poses[i] - pose[i]) < 0.02);
  for (std::size_t k = 0; k < found.support.size(); ++k) {  // all of them rigid, and supported as they say
    const double* t = &found.poses[16 * k];
    const double rotation[9] = {t[0], t[1], t[2], t[4], t[5], t[6], t[8], t[9], t[10]};
    CHECK(std::fabs(dlc::determinant3(rotation) - 1) < 1e-9);
    CHECK(t[12] == 0 && t[13] == 0 && t[14] == 0 && t[15] == 1);
    int64_t inside = 0;
    for (std::size_t i = 0; i < p.size(); i += 3) {
      double d2 = 0;
      for (std::size_t r = 0; r < 3; ++r) {
        const double x =
            t[4 * r] * p[i] + t[4 * r + 1] * p[i + 1] + t[4 * r + 2] * p[i + 2] + t[4 * r + 3] - q[i + r];
        d2 += x * x;
      }
      inside += std::sqrt(d2) < 0.02;
    }
    CHECK(inside == found.support[k]);
  }
  const Proposals few = propose(p, q, {0.02, 2, 30});
  CHECK(few.support.size() == 2 && few.support[0] == found.support[0]);
  CHECK(propose(p, q, {0.02, 300, 2}).support.empty());  // two matches make no pose
}

}  // namespace

int main() {
  check_planted(64, 20);
  check_planted(65, 65);
  check_planted(300, 60);
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {0, 1, 2, 3, 63, 130}) {
      const Floats p = shapes::points(shape, n, 13);
      const Proposals found = propose(p, p, {0.05, 40, 30});
      for (const double x : found.poses) CHECK(std::isfinite(x));
      if (n < 3 || shape == "equal" || shape == "tiny") CHECK(found.support.empty());
      if (n == 130 && shape == "uniform") CHECK(found.support.size() == 32);  // the first round explains every seed
    }
  return failures() ? 1 : 0;
}
