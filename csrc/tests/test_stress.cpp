// Every entry point from several threads at once, on random degenerate clouds: nothing may crash, race or loop for ever,
// and each answer has the same bits from any number of threads. `test_stress ROUNDS SEED`; the sanitizers see the rest.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include "check.hpp"
#include "core/assignment.hpp"
#include "core/consensus.hpp"
#include "core/features.hpp"
#include "core/icp_batch.hpp"
#include "core/intensities.hpp"
#include "core/kdtree.hpp"
#include "core/linearize.hpp"
#include "core/morton.hpp"
#include "core/normals.hpp"
#include "core/search_memory.hpp"
#include "core/surface.hpp"
#include "core/voxel.hpp"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Random = std::mt19937;

template <class T>
T pick(Random& random, std::initializer_list<T> choices) {
  return choices.begin()[random() % choices.size()];
}

std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

// (n, 3), finite: a named shape, scaled, moved, thinned to few values, or with one point far off.
Floats cloud(Random& random, int64_t n) {
  Floats points = shapes::points(shapes::names()[random() % shapes::names().size()], n, static_cast<unsigned>(random()));
  const float scale = pick(random, {1.0f, 1.0f, 1.0f, 1e-30f, 1e-42f, 1e-10f, 1e10f, 1e18f, 1e30f});
  const float shift = pick(random, {0.0f, 0.0f, 1.0f, 1e6f, -1e15f}) * scale;
  for (float& x : points) x = std::min(std::max(x * scale + shift, -3e38f), 3e38f);
  if (n > 0 && random() % 4 == 0) points[random() % points.size()] = pick(random, {1e30f, -1e38f, 3e38f, 1e4f, 0.0f});
  if (n > 0 && random() % 8 == 0)
    for (float& x : points) x = points[0];
  return points;
}

Floats directions(Random& random, int64_t n) {
  Floats out = shapes::points("uniform", n, static_cast<unsigned>(random()));
  for (std::size_t i = 0; i < out.size(); i += 3) {
    float norm = 0;
    for (std::size_t a = 0; a < 3; ++a) out[i + a] -= 0.5f, norm += out[i + a] * out[i + a];
    for (std::size_t a = 0; a < 3; ++a) out[i + a] /= std::sqrt(norm);
  }
  if (random() % 5 == 0) std::fill(out.begin(), out.end(), 0.0f);
  return out;
}

Doubles pose(Random& random) {
  const auto unit = [&] { return static_cast<double>(random()) / 4294967296.0 - 0.5; };
  const double xi[6] = {unit(), 6 * unit(), unit(), unit(), unit() * pick(random, {1.0, 1e6, 1e-9}), unit()};
  Doubles out(16);
  dlc::se3_exp(xi, out.data());
  return out;
}

// The bytes of an answer, whatever its type.
struct Bytes {
  std::string held;
  template <class T>
  void add(const std::vector<T>& values) {
    held.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
};

void searches(Random random, const Floats& p, const Floats& q, float reach, int threads, Bytes& out) {
  const auto n = static_cast<int64_t>(p.size() / 3), m = static_cast<int64_t>(q.size() / 3);
  const int k = pick(random, {1, 2, 5, 40});
  const dlc::KdTree tree(q.data(), m, threads);
  Floats distances(size(n * k)), normals(size(3 * n)), covariances(size(6 * n)), means(p.size());
  std::vector<int64_t> indices(size(n * k)), splits(size(n + 1)), inverse(size(n));
  dlc::knn(tree, p.data(), n, k, pick(random, {reach, shapes::kInfinity}), distances.data(), indices.data(), threads);
  out.add(distances), out.add(indices);
  const int64_t found = dlc::radius_count(tree, p.data(), n, reach, splits.data(), threads);
  CHECK(found == splits.back() && found >= 0 && found <= n * m);
  Floats near(size(found));
  std::vector<int64_t> which(size(found));
  dlc::radius_fill(tree, p.data(), n, reach, splits.data(), near.data(), which.data(), threads);
  out.add(splits), out.add(near), out.add(which);
  dlc::normals(tree, p.data(), n, k, reach, normals.data(), covariances.data(), threads);
  out.add(normals), out.add(covariances);
  const std::vector<uint8_t> mask(size(n), static_cast<uint8_t>(random() % 2));
  dlc::knn_batch({p.data(), mask.data(), n}, {q.data(), nullptr, m}, 1, k, reach, distances.data(), indices.data(), threads);
  out.add(distances), out.add(indices);
  dlc::normals_of_rows(q.data(), m, indices.data(), 1, n, k, normals.data(), threads);
  out.add(normals);
  if (n > 0) dlc::morton_order(p.data(), n, inverse.data(), threads), out.add(inverse);
  try {
    const int64_t voxels = dlc::voxel_downsample(p.data(), n, reach, inverse.data(), means.data(), threads);
    CHECK(voxels >= 0 && voxels <= n);
    out.add(inverse);
  } catch (const std::invalid_argument&) {
  }
}

void steps(Random random, const Floats& p, const Floats& q, float reach, int threads, Bytes& out) {
  const auto n = static_cast<int64_t>(p.size() / 3), m = static_cast<int64_t>(q.size() / 3);
  const dlc::KdTree tree(q.data(), m, threads);
  const Floats source_normals = directions(random, n), target_normals = directions(random, m), light(size(m), 0.5f);
  Floats source_covariances(size(6 * n)), target_covariances(size(6 * m)), gradients(size(4 * m)), own(size(n), 0.25f);
  dlc::normals(tree, q.data(), m, 8, reach, nullptr, target_covariances.data(), threads);
  dlc::intensity_gradients(tree, light.data(), target_normals.data(), 6, reach, gradients.data(), threads);
  out.add(gradients);
  Floats buffer(dlc::SearchMemory::bytes(n) / sizeof(float));
  const dlc::SearchMemory memory(buffer.data(), n);
  std::vector<int64_t> indices(size(n));
  for (int step = 0; step < 3; ++step) {
    const Doubles transform = pose(random);
    const dlc::LinearizeProblem problem{static_cast<dlc::Kind>(random() % 5),
                                        p.data(),
                                        source_normals.data(),
                                        source_covariances.data(),
                                        n,
                                        &tree,
                                        q.data(),
                                        target_normals.data(),
                                        target_covariances.data(),
                                        transform.data(),
                                        reach,
                                        static_cast<dlc::Kernel>(random() % 6),
                                        0.1,
                                        indices.data(),
                                        nullptr,
                                        &memory,
                                        own.data(),
                                        gradients.data(),
                                        0.9};
    Doubles sums(dlc::kSums);
    dlc::linearize(problem, sums.data(), threads);
    for (double& sum : sums) sum = std::isnan(sum) ? 0 : sum;  // of NaN the sign is nobody's
    out.add(sums), out.add(indices);
  }
  const int64_t batch = 1 + n % 2, rows = n / batch, columns = m / batch;
  Doubles poses(size(16 * batch)), fitness(size(batch)), rmse(size(batch)), energy(size(batch)), after(size(16 * batch));
  std::vector<int64_t> iterations(size(batch));
  bool converged[2];
  dlc::icp_batch({static_cast<dlc::Kind>(random() % 2), p.data(), q.data(), nullptr, nullptr, nullptr, batch, rows, columns,
                  reach, 8, 1e-6, 6},
                 {poses.data(), fitness.data(), rmse.data(), iterations.data(), converged}, threads);
  for (const double x : poses) CHECK(std::isfinite(x));
  out.add(poses), out.add(fitness), out.add(iterations);
  if (std::fabs(p.empty() ? 0 : p[0]) > 1e6f) return;  // the callers take clouds about their centres
  const Floats affinity(size(batch * rows * columns), -0.5f), u(size(batch * rows), 0.01f), v(size(batch * columns), 0.01f);
  const Doubles beta(size(batch), pick(random, {0.0, 1.0, 1e4})), outlier(size(batch), pick(random, {-5.0, 3.0}));
  dlc::soft_assignment({p.data(), q.data(), {affinity.data()}, poses.data(), beta.data(), outlier.data(), u.data(), v.data(),
                        1, batch, rows, columns, random() % 2 == 0},
                       energy.data(), after.data(), threads);
  for (double& value : energy) value = std::isnan(value) ? 0 : value;
  out.add(energy);
}

void hypotheses(Random random, const Floats& p, const Floats& q, float reach, int threads, Bytes& out) {
  const auto n = static_cast<int64_t>(p.size() / 3), m = static_cast<int64_t>(q.size() / 3);
  if (n == 0 || m == 0) return;
  const Floats p_normals = directions(random, n), q_normals = directions(random, m);
  const bool oriented = random() % 2 == 0;
  Floats a(size(n * dlc::kFeatureSize)), b(size(m * dlc::kFeatureSize)), squared(size(n));
  std::vector<int64_t> nearest(size(n)), support(20);
  dlc::fpfh(dlc::KdTree(p.data(), n, threads), p.data(), p_normals.data(), n, reach, oriented, a.data(), threads);
  dlc::fpfh(dlc::KdTree(q.data(), m, threads), q.data(), q_normals.data(), m, reach, oriented, b.data(), threads);
  for (const float x : a) CHECK(std::isfinite(x));
  dlc::nearest_features(a.data(), n, b.data(), m, dlc::kFeatureSize, nearest.data(), squared.data(), threads);
  out.add(a), out.add(nearest);
  Floats matched;
  for (const int64_t i : nearest) matched.insert(matched.end(), q.begin() + 3 * i, q.begin() + 3 * i + 3);
  Doubles poses(16 * 20, 0.0);
  const int64_t count = dlc::propose_poses(p.data(), matched.data(), n, {reach, 20, 12}, poses.data(), support.data(), threads);
  CHECK(count >= 0 && count <= 20);
  poses.resize(size(16 * count));
  const Doubles other = pose(random);
  poses.insert(poses.end(), other.begin(), other.end());
  try {
    dlc::Surface source(p.data(), p_normals.data(), n, reach / 3, reach);
    dlc::Surface target(q.data(), q_normals.data(), m, reach / 3, reach);
    source.set_eye({p[0], p[1], p[2]}, 0.1f), target.set_eye({0, 0, 1}, 0.3f);
    dlc::refine_poses(source, target, poses.data(), count + 1, {5, reach, reach / 2, 0.5f, oriented, 50}, threads);
    Doubles judged(size(4 * (count + 1)));
    dlc::judge_poses(source, target, poses.data(), count + 1, {reach, 0.5f, oriented, reach, 40}, judged.data(), threads);
    out.add(poses), out.add(judged);
  } catch (const std::invalid_argument&) {
  }
}

void round(unsigned seed) {
  Random random(seed);
  const int64_t n = pick<int64_t>(random, {0, 1, 2, 3, 17, 60, 200, 700}), m = pick<int64_t>(random, {1, 2, 5, 33, 150, 900});
  const Floats p = cloud(random, n), q = random() % 3 == 0 && n > 0 ? p : cloud(random, m);
  float span = 0;
  for (const float x : q) span = std::max(span, std::fabs(x - q[0]));
  const float reach = std::isfinite(span) && span > 1e-30f ? span * pick(random, {0.05f, 0.3f, 2.0f}) : 1.0f;
  const Random kept = random;
  Bytes expected, found;
  for (Bytes* out : {&expected, &found}) {
    const int threads = out == &expected ? 1 : 3;
    searches(kept, p, q, reach, threads, *out);
    steps(kept, p, q, reach, threads, *out);
    hypotheses(kept, p, q, reach, threads, *out);
  }
  CHECK(expected.held == found.held);
  if (expected.held != found.held) std::printf("round %u: other threads, other bits\n", seed);
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 60;
  const unsigned first = count > 2 ? static_cast<unsigned>(std::atoi(arguments[2])) : 0;
  std::atomic<int> next{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int i; (i = next++) < rounds;) round(first + static_cast<unsigned>(i));
    });
  for (std::thread& caller : callers) caller.join();
  return failures() ? 1 : 0;
}
