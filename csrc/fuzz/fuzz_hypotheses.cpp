// Descriptors, their matches, poses from matches, and the judging and refining of poses, for any finite clouds and normals.
#include <stdexcept>

#include "core/consensus.hpp"
#include "core/features.hpp"
#include "core/kdtree.hpp"
#include "core/signatures.hpp"
#include "core/surface.hpp"
#include "input.hpp"

namespace {

using namespace fuzz;

constexpr double kMostCells = 4096;  // of a grid; it may have 2^24, each looked at for each point, but a case has no time

void descriptors(Input in, int threads, Answer& answer) {
  const int64_t n = std::max<int64_t>(1, in.count(60));
  const Floats p = cloud(in, n), normals = directions(in, n);
  const float radius = reach(in, p);
  const bool oriented = in.coin();
  const dlc::KdTree tree(p.data(), n, threads);
  Floats features(size(n * dlc::kFeatureSize)), rows(size(n * dlc::signature_size(oriented)));
  dlc::fpfh(tree, p.data(), normals.data(), n, radius, oriented, features.data(), threads);
  dlc::signatures(tree, p.data(), normals.data(), n, radius, oriented, rows.data(), threads);
  answer.add(features), answer.add(rows);
}

void matches(Input in, int threads, Answer& answer) {
  const int64_t n = in.count(70), m = in.count(70), width = 1 + in.byte() % 40;
  const Floats a = numbers(in, n, width), b = numbers(in, m, width);
  Floats squared(size(n));
  Integers indices(size(n));
  dlc::nearest_features(a.data(), n, b.data(), m, static_cast<int>(width), indices.data(), squared.data(), threads);
  for (const int64_t j : indices) REQUIRE(m == 0 ? j == -1 : j >= 0 && j < m);  // which of two near ones: AVX2's rounding
  const int64_t pairs = in.count(100);
  const Floats p = cloud(in, pairs);
  Floats q = in.coin() ? p : cloud(in, pairs);
  for (int times = in.byte() % 8; times > 0 && !q.empty(); --times) q[in.byte() % q.size()] = in.finite<float>();
  const int64_t seeds = std::min<int64_t>(in.pick({1, 5, 40, 300}), pairs);
  const auto clique = static_cast<int>(std::min<int64_t>(in.pick({1, 3, 12, 30}), std::max<int64_t>(1, pairs)));
  Doubles poses(size(16 * seeds));
  Integers support(size(seeds));
  const dlc::ConsensusOptions options{reach(in, p.empty() ? Floats(3) : p), static_cast<int>(seeds), clique};
  const int64_t count = dlc::propose_poses(p.data(), q.data(), pairs, options, poses.data(), support.data(), threads);
  REQUIRE(count >= 0 && count <= seeds);
  poses.resize(size(16 * count)), support.resize(size(count));
  REQUIRE(all_finite(poses));
  answer.add(poses), answer.add(support);
}

// A surface of few enough cells.
dlc::Surface surface(const Floats& points, const Floats& normals, float cell, float reach) {
  const auto n = static_cast<int64_t>(points.size() / 3);
  double extent = 0;
  for (std::size_t i = 0; i < points.size(); ++i)
    extent = std::max(extent, std::fabs(static_cast<double>(points[i]) - points[i % 3]));
  const double least = (2 * extent + 2 * static_cast<double>(reach)) / std::cbrt(kMostCells);
  cell = static_cast<float>(std::min<double>(std::max<double>(cell, least), std::numeric_limits<float>::max()));
  return dlc::Surface(points.data(), normals.data(), n, cell, reach);
}

void judgements(Input in, int threads, Answer& answer) {
  const int64_t n = std::max<int64_t>(1, in.count(60)), m = std::max<int64_t>(1, in.count(60));
  const Floats p = cloud(in, n), q = in.coin() && n == m ? p : cloud(in, m);
  const Floats p_normals = directions(in, n), q_normals = directions(in, m);
  const int64_t count = in.byte() % 4;
  Doubles poses(size(16 * count)), judged(size(4 * count));
  for (int64_t k = 0; k < count; ++k) pose(in, poses.data() + 16 * k);
  const float length = reach(in, p), cosine = in.bits<int8_t>() / 128.0f;
  const bool oriented = in.coin();
  try {
    // One at a time: the order in which a call's arguments are made is the compiler's.
    const float source_cell = in.coin() ? length / 4 : in.length(), target_cell = in.coin() ? length / 4 : in.length();
    const float target_reach = in.coin() ? length : in.length(), bin_angle = 0.1f + in.length();
    dlc::Surface source = surface(p, p_normals, source_cell, length);
    dlc::Surface target = surface(q, q_normals, target_cell, target_reach);
    if (in.coin()) source.set_eye({in.finite<float>(), in.finite<float>(), in.finite<float>()}, bin_angle);
    if (in.coin()) target.set_eye({q[0], q[1], 0.0f}, 0.3f);
    const int64_t samples = in.pick({1, 7, 1000});
    const dlc::RefineOptions steps{in.pick({1, 2, 6}), in.coin() ? length : in.length(), length, cosine, oriented, samples};
    dlc::refine_poses(source, target, poses.data(), count, steps, threads);
    const dlc::JudgeOptions question{length, cosine, oriented, in.limit(length), samples};
    dlc::judge_poses(source, target, poses.data(), count, question, judged.data(), threads);
    answer.add(poses), answer.add(judged);
    REQUIRE(all_finite(poses));
    for (int64_t k = 0; k < count; ++k)
      for (int64_t way = 0; way < 2; ++way) REQUIRE(judged[size(4 * k + way)] >= 0 && judged[size(4 * k + way)] <= 1);
  } catch (const std::invalid_argument&) {  // spread out further than float32 reaches
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t bytes) {
  Input in(data, bytes);
  const int what = in.byte() % 3;
  same_twice(in, [&](int threads, Answer& answer) {
    if (what == 0) descriptors(in, threads, answer);
    if (what == 1) matches(in, threads, answer);
    if (what == 2) judgements(in, threads, answer);
  });
  return 0;
}
