// Linearisations, ICP in batches, soft assignments: steps of a registration from any pose, of numbers that nobody looked at.
#include "core/assignment.hpp"
#include "core/icp_batch.hpp"
#include "core/kdtree.hpp"
#include "core/linearize.hpp"
#include "core/search_memory.hpp"
#include "input.hpp"

namespace {

using namespace fuzz;

void steps(Input in, int threads, Answer& answer) {
  const int64_t n = in.count(1100), m = std::max<int64_t>(1, in.count(230));
  const Floats p = any_numbers(in, n, 3), q = cloud(in, m);
  const Floats p_normals = any_numbers(in, n, 3), q_normals = any_numbers(in, m, 3), p_light = any_numbers(in, n, 1);
  const Floats p_covariances = any_numbers(in, n, 6), q_covariances = any_numbers(in, m, 6), q_light = any_numbers(in, m, 4);
  const dlc::KdTree tree(q.data(), m, threads);
  const float limit = in.limit(reach(in, q));
  Integers given(size(n)), found(size(n)), again(size(n));
  const bool search = in.byte() % 4 != 0;
  for (int64_t& j : given) j = search ? 0 : in.byte() % (m + 1) - 1;
  Floats distances(size(n)), memory(dlc::SearchMemory::bytes(n) / sizeof(float));
  const dlc::SearchMemory remembered(memory.data(), n);
  const auto kind = static_cast<dlc::Kind>(in.byte() % 5);
  const auto kernel = static_cast<dlc::Kernel>(in.byte() % 6);
  const double parameter = in.coin() ? 0.1 : std::max(std::fabs(in.finite<double>()), 5e-324), share = in.byte() / 255.0;
  for (int step = 0; step < 3; ++step) {
    double transform[16];
    pose(in, transform);
    found = given;
    Doubles sums(dlc::kSums), plain(dlc::kSums);
    dlc::LinearizeProblem problem{kind, p.data(), p_normals.data(), p_covariances.data(), n, search ? &tree : nullptr,
                                  q.data(), q_normals.data(), q_covariances.data(), transform, limit, kernel, parameter,
                                  found.data(), distances.data(), search ? &remembered : nullptr, p_light.data(),
                                  q_light.data(), share};
    dlc::linearize(problem, sums.data(), threads);
    answer.add(sums), answer.add(found), answer.add(distances);
    for (const int64_t j : found) REQUIRE(j >= -1 && j < m);
    again = given;
    problem.indices = again.data(), problem.memory = nullptr;
    dlc::linearize(problem, plain.data(), threads);
    REQUIRE(again == found);  // memory changes nothing
  }
}

void many_pairs(Input in, int threads, Answer& answer) {
  const int64_t batch = in.byte() % 3, n = in.count(130), m = in.count(130);
  Floats p = numbers(in, batch * n, 3), q = numbers(in, batch * m, 3);
  std::vector<uint8_t> p_mask(size(batch * n), 1), q_mask(size(batch * m), 1);
  const bool masked = in.coin();
  for (std::size_t i = 0; masked && i < p_mask.size(); ++i)
    if (!(p_mask[i] = in.byte() % 4 != 0)) p[3 * i] = in.bits<float>();
  for (std::size_t i = 0; masked && i < q_mask.size(); ++i)
    if (!(q_mask[i] = in.byte() % 4 != 0)) q[3 * i] = in.bits<float>();
  Doubles start(size(16 * batch));
  for (int64_t b = 0; b < batch; ++b) pose(in, start.data() + 16 * b);
  const bool started = in.coin();
  Doubles poses(size(16 * batch)), fitness(size(batch)), rmse(size(batch));
  Integers iterations(size(batch));
  bool converged[3];
  const double tolerance = in.pick({0.0, 1e-6, 1e-2, 1e300});
  dlc::icp_batch({static_cast<dlc::Kind>(in.byte() % 2), p.data(), q.data(), masked ? p_mask.data() : nullptr,
                  masked ? q_mask.data() : nullptr, started ? start.data() : nullptr, batch, n, m,
                  in.limit(reach(in, q.empty() ? Floats(3) : q)), in.pick({1, 4, 12}), tolerance,
                  in.pick({3, 6, 20, 2147483647})},
                 {poses.data(), fitness.data(), rmse.data(), iterations.data(), converged}, threads);
  answer.add(poses), answer.add(fitness), answer.add(rmse), answer.add(iterations);
  for (const double share : fitness) REQUIRE(share >= 0 && share <= 1);
  REQUIRE(all_finite(poses));
}

void assignments(Input in, int threads, Answer& answer) {
  const int64_t n = in.count(1100), m = in.count(n > 40 ? 40 : 130), batch = in.byte() % 3, num_poses = in.byte() % 5;
  const int64_t channels = in.byte() % 12 - 1;
  const Floats p = numbers(in, batch * n, 3), q = numbers(in, batch * m, 3);
  Floats f, g, r, c;
  if (channels < 0) {
    f = any_numbers(in, batch * n, m);
    if (in.coin())
      for (float& a : f) a = std::fmod(a, 16.0f);
  } else {
    f = numbers(in, batch * n, channels), g = numbers(in, batch * m, channels);
    r = numbers(in, batch * n, 1), c = numbers(in, batch * m, 1);
    if (!r.empty() && in.coin()) r[in.byte() % r.size()] = -kInfinity;
    if (!c.empty() && in.coin()) c[in.byte() % c.size()] = -kInfinity;
  }
  Floats u = numbers(in, batch * n, 1), v = numbers(in, batch * m, 1);
  for (float& weight : u) weight = std::fabs(weight);
  for (float& weight : v) weight = std::fabs(weight);
  Doubles poses(size(16 * num_poses * batch)), after(poses.size()), beta(size(batch)), outlier(size(batch));
  for (int64_t k = 0; k < num_poses * batch; ++k) pose(in, poses.data() + 16 * k);
  for (double& x : beta) x = in.coin() ? in.byte() : std::fabs(in.finite<double>());
  for (double& x : outlier) x = in.coin() ? in.bits<int8_t>() : in.finite<double>();
  Doubles energy(size(num_poses * batch));
  const bool both_ways = in.coin(), moments = in.coin();
  dlc::soft_assignment({p.data(), q.data(), {f.data(), channels, g.data(), r.data(), c.data()}, poses.data(), beta.data(),
                        outlier.data(), u.data(), v.data(), num_poses, batch, n, m, both_ways},
                       energy.data(), moments ? after.data() : nullptr, threads);
  answer.add(energy);
  if (moments) answer.add(after);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t bytes) {
  Input in(data, bytes);
  const int what = in.byte() % 3;
  same_twice(in, [&](int threads, Answer& answer) {
    if (what == 0) steps(in, threads, answer);
    if (what == 1) many_pairs(in, threads, answer);
    if (what == 2) assignments(in, threads, answer);
  });
  return 0;
}
