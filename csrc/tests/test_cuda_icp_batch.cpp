// Batched ICP by the CUDA kernel, run on the host, against the CPU core.
#include "check.hpp"
#include "core/icp_batch.hpp"
#include "core/linalg.hpp"
#include "cuda/device.hpp"

using shapes::kInfinity;

namespace {

struct Answer {
  explicit Answer(std::size_t batch)
      : poses(16 * batch, -7), fitness(batch, -7), rmse(batch, -7), iterations(batch, -7), converged(batch, 9) {}
  dlc::IcpBatchAnswer pointers() {
    return {poses.data(), fitness.data(), rmse.data(), iterations.data(), reinterpret_cast<bool*>(converged.data())};
  }
  std::vector<double> poses, fitness, rmse;
  std::vector<int64_t> iterations;
  std::vector<uint8_t> converged;
};

void check(dlc::Kind kind, int64_t batch, int64_t n, int64_t m, bool masked, bool started, float limit, int neighbours,
           unsigned seed) {
  std::vector<float> source, target;
  std::vector<uint8_t> source_mask, target_mask;
  std::vector<double> start;
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<float> p = shapes::points("surface", n, seed + static_cast<unsigned>(2 * b));
    const std::vector<float> q = shapes::points("surface", m, seed + static_cast<unsigned>(2 * b + 1));
    const double xi[6] = {0.05, -0.03, 0.08, 0.02, 0.01, -0.02};
    double pose[16];
    dlc::se3_exp(xi, pose);
    source.insert(source.end(), p.begin(), p.end());
    for (int64_t j = 0; j < m; ++j)
      for (int r = 0; r < 3; ++r) {
        double x = pose[4 * r + 3] + 20;
        for (int c = 0; c < 3; ++c) x += pose[4 * r + c] * q[static_cast<std::size_t>(3 * j + c)];
        target.push_back(static_cast<float>(x));
      }
    for (int64_t i = 0; i < n; ++i) source_mask.push_back(b == 1 ? i < 2 : i % 5 != 1);  // pair 1 has too few points
    for (int64_t j = 0; j < m; ++j) target_mask.push_back(j % 7 != 2);
    const double move[16] = {1, 0, 0, 20, 0, 1, 0, 20, 0, 0, 1, 20, 0, 0, 0, 1};
    start.insert(start.end(), move, move + 16);
  }
  if (masked)
    for (std::size_t i = 0; i < source_mask.size(); ++i)
      if (!source_mask[i]) source[3 * i] = std::nanf("");
  const dlc::IcpBatchProblem problem{kind, source.data(), target.data(), masked ? source_mask.data() : nullptr,
                                     masked ? target_mask.data() : nullptr, started ? start.data() : nullptr, batch, n, m,
                                     limit, 12, 1e-6, neighbours};
  Answer expected(static_cast<std::size_t>(batch)), found(static_cast<std::size_t>(batch));
  dlc::icp_batch(problem, expected.pointers(), 1);
  std::vector<double> scratch(dlc::cuda::icp_batch_bytes(batch, n, m) / 8 + 1, std::nan(""));
  dlc::cuda::icp_batch({0, nullptr}, problem, found.pointers(), scratch.data());
  CHECK(found.iterations == expected.iterations && found.converged == expected.converged);
  for (std::size_t i = 0; i < found.poses.size(); ++i) CHECK(std::fabs(found.poses[i] - expected.poses[i]) < 1e-6);
  for (std::size_t b = 0; b < found.rmse.size(); ++b) {
    CHECK(std::fabs(found.fitness[b] - expected.fitness[b]) < 1e-12);
    CHECK(std::fabs(found.rmse[b] - expected.rmse[b]) < 1e-7);
  }
}

}  // namespace

int main() {
  for (const dlc::Kind kind : {dlc::Kind::kPointToPlane, dlc::Kind::kPointToPoint}) {
    check(kind, 3, 200, 150, false, true, 0.3f, 12, 1);
    check(kind, 3, 200, 150, true, true, kInfinity, 30, 2);
    check(kind, 1, 700, 1100, true, true, 0.2f, 20, 3);  // several points a thread, several tiles
    check(kind, 2, 60, 60, false, false, 0.5f, 10, 4);   // nothing corresponds
    check(kind, 2, 2, 60, false, true, 0.5f, 10, 5);
  }
  return failures();
}
