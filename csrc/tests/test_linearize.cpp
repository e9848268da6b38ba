// The fused pass against itself: threads, given against searched correspondences, the two roads of generalized ICP, and
// the gradient against finite differences of the cost.
#include "core/linearize.hpp"

#include <algorithm>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "check.hpp"
#include "core/correspondence.hpp"
#include "core/kdtree.hpp"
#include "core/simd.hpp"

namespace {

struct Cloud {
  explicit Cloud(int64_t n, unsigned seed)
      : points(3 * n), normals(3 * n), covariances(6 * n), intensities(n), gradients(4 * n) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution;
    for (float& x : points) x = distribution(generator);
    for (int64_t i = 0; i < n; ++i) {
      float v[3], norm = 0.0f;
      for (float& x : v) x = distribution(generator), norm += x * x;
      for (int a = 0; a < 3; ++a) normals[3 * i + a] = v[a] / std::sqrt(norm);
      int at = 0;  // I + 0.3 v v^T
      for (int r = 0; r < 3; ++r)
        for (int c = r; c < 3; ++c) covariances[6 * i + at++] = (r == c) + 0.3f * v[r] * v[c];
      intensities[i] = distribution(generator);
      for (int a = 0; a < 4; ++a) gradients[4 * i + a] = distribution(generator);
    }
  }
  std::vector<float> points, normals, covariances, intensities, gradients;
};

constexpr int64_t kSource = 5000, kTarget = 4000;

struct Fixture {
  Fixture() : source(kSource, 1), target(kTarget, 2), tree(target.points.data(), kTarget, 1), indices(kSource) {}

  dlc::LinearizeProblem problem(dlc::Kind kind, dlc::Kernel kernel, double parameter) {
    return {kind,
            source.points.data(),
            source.normals.data(),
            source.covariances.data(),
            kSource,
            &tree,
            target.points.data(),
            target.normals.data(),
            target.covariances.data(),
            transform,
            0.3f,
            kernel,
            parameter,
            indices.data(),
            nullptr,
            nullptr,
            source.intensities.data(),
            target.gradients.data(),
            0.7};
  }

  Cloud source, target;
  dlc::KdTree tree;
  std::vector<int64_t> indices;
  double transform[16] = {0.8, -0.6, 0, 0.1, 0.6, 0.8, 0, -0.2, 0, 0, 1, 0.05, 0, 0, 0, 1};
};

constexpr dlc::Kind kKinds[] = {dlc::Kind::kPointToPoint, dlc::Kind::kPointToPlane, dlc::Kind::kSymmetric,
                                dlc::Kind::kGeneralized, dlc::Kind::kColored};
constexpr dlc::Kernel kKernels[] = {dlc::Kernel::kL2,     dlc::Kernel::kL1,           dlc::Kernel::kHuber,
                                    dlc::Kernel::kCauchy, dlc::Kernel::kGemanMcClure, dlc::Kernel::kTukey};

template <dlc::Kind kind>
using KindOf = std::integral_constant<dlc::Kind, kind>;

void test_same_bits() {
  Fixture f;
  for (dlc::Kind kind : kKinds)
    for (dlc::Kernel kernel : kKernels) {
      dlc::LinearizeProblem problem = f.problem(kind, kernel, 0.1);
      double one[dlc::kSums], other[dlc::kSums];
      dlc::linearize(problem, one, 1);
      CHECK(one[dlc::kCount] > 100 && one[dlc::kCount] < kSource);
      for (int threads : {2, 3, 0}) {
        dlc::linearize(problem, other, threads);
        CHECK(std::memcmp(one, other, sizeof one) == 0);
      }
      dlc::set_use_avx2(false);
      dlc::linearize(problem, other, 1);
      dlc::set_use_avx2(true);
      CHECK(std::memcmp(one, other, sizeof one) == 0);
      problem.tree = nullptr;  // the correspondences just found
      dlc::linearize(problem, other, 2);
      CHECK(std::memcmp(one, other, sizeof one) == 0);
    }
}

// Four at once against add_correspondence one by one, and with covariances among them that have no inverse.
void test_one_by_one() {
  Fixture f;
  for (int64_t i = 0; i < kSource; i += 37) std::fill_n(f.source.covariances.data() + 6 * i, 6, 0.0f);
  for (int64_t j = 0; j < kTarget; j += 3) std::fill_n(f.target.covariances.data() + 6 * j, 6, 0.0f);
  for (dlc::Kind kind : kKinds) {
    dlc::LinearizeProblem problem = f.problem(kind, dlc::Kernel::kL2, 1.0);
    std::vector<float> distances(kSource);
    double sums[dlc::kSums], expected[dlc::kSums] = {};
    dlc::linearize(problem, sums, 1);
    problem.tree = nullptr;
    problem.distances = distances.data();
    dlc::linearize(problem, sums, 1);
    const dlc::CorrespondingClouds clouds{problem.source,
                                          problem.source_normals,
                                          problem.source_covariances,
                                          problem.target,
                                          problem.target_normals,
                                          problem.target_covariances,
                                          problem.source_intensities,
                                          problem.target_intensities,
                                          problem.lambda_geometric};
    const dlc::Pose pose(f.transform);
    for (int64_t i = 0; i < kSource; ++i) {
      if (f.indices[i] < 0) {
        CHECK(std::isinf(distances[i]));
        continue;
      }
      double p[3];
      pose.apply(problem.source + 3 * i, p);
      const auto add = [&](auto which) {
        return dlc::add_correspondence<which.value>(clouds, pose, dlc::Kernel::kL2, 1.0, i, f.indices[i], p, expected);
      };
      double distance2 = 0;
      switch (kind) {
        case dlc::Kind::kPointToPoint: distance2 = add(KindOf<dlc::Kind::kPointToPoint>{}); break;
        case dlc::Kind::kPointToPlane: distance2 = add(KindOf<dlc::Kind::kPointToPlane>{}); break;
        case dlc::Kind::kSymmetric: distance2 = add(KindOf<dlc::Kind::kSymmetric>{}); break;
        case dlc::Kind::kGeneralized: distance2 = add(KindOf<dlc::Kind::kGeneralized>{}); break;
        case dlc::Kind::kColored: distance2 = add(KindOf<dlc::Kind::kColored>{}); break;
      }
      CHECK(distances[i] == static_cast<float>(std::sqrt(distance2)));
    }
    for (int s = 0; s < dlc::kSums; ++s) CHECK(std::fabs(sums[s] - expected[s]) < 1e-12 * (1 + sums[0] + sums[20]));
  }
}

// Huber with a huge threshold has unit weights, and takes the road through the matrix root.
void test_generalized_roads() {
  Fixture f;
  double direct[dlc::kSums], rows[dlc::kSums];
  dlc::linearize(f.problem(dlc::Kind::kGeneralized, dlc::Kernel::kL2, 1.0), direct, 1);
  dlc::linearize(f.problem(dlc::Kind::kGeneralized, dlc::Kernel::kHuber, 1e9), rows, 1);
  for (int i = 0; i < dlc::kSums; ++i) CHECK(std::fabs(direct[i] - rows[i]) < 1e-12 * (direct[0] + direct[20]));
}

// The gradient is that of the cost where the Jacobian neglects nothing: point-to-plane, colored, and generalized with
// target covariances only in the way (the source's are isotropic, so they do not turn).
void test_gradient() {
  Fixture f;
  for (int64_t i = 0; i < kSource; ++i)
    for (int a = 0; a < 6; ++a) f.source.covariances[6 * i + a] = a == 0 || a == 3 || a == 5 ? 0.5f : 0.0f;
  for (dlc::Kind kind : {dlc::Kind::kPointToPlane, dlc::Kind::kColored, dlc::Kind::kGeneralized})
    for (dlc::Kernel kernel : kKernels) {
      if (kernel == dlc::Kernel::kL1) continue;  // its kinks are not differentiable
      dlc::LinearizeProblem problem = f.problem(kind, kernel, 0.1);
      double sums[dlc::kSums];
      dlc::linearize(problem, sums, 1);
      problem.tree = nullptr;
      for (int axis = 0; axis < 6; ++axis) {
        const double step = 1e-6;
        double cost[2];
        for (int side = 0; side < 2; ++side) {
          double xi[6] = {}, update[16], moved[16] = {};
          xi[axis] = side ? step : -step;
          dlc::se3_exp(xi, update);
          for (int r = 0; r < 4; ++r)
            for (int c = 0; c < 4; ++c)
              for (int k = 0; k < 4; ++k) moved[4 * r + c] += update[4 * r + k] * f.transform[4 * k + c];
          problem.transform = moved;
          double other[dlc::kSums];
          dlc::linearize(problem, other, 1);
          cost[side] = other[dlc::kCost];
        }
        CHECK(std::fabs((cost[1] - cost[0]) / (2 * step) - sums[dlc::kGradient + axis]) < 1e-5 * (1 + sums[dlc::kCost]));
      }
    }
}

// With all the weight on geometry colored ICP is point-to-plane; with none, colours alone count.
void test_colored_shares() {
  Fixture f;
  double plane[dlc::kSums], colored[dlc::kSums];
  dlc::linearize(f.problem(dlc::Kind::kPointToPlane, dlc::Kernel::kHuber, 0.1), plane, 1);
  dlc::LinearizeProblem problem = f.problem(dlc::Kind::kColored, dlc::Kernel::kHuber, 0.1);
  problem.lambda_geometric = 1.0;
  dlc::linearize(problem, colored, 1);
  for (int i = 0; i < dlc::kSums; ++i) CHECK(std::fabs(colored[i] - plane[i]) < 1e-12 * (plane[0] + plane[20]));
  problem.lambda_geometric = 0.0;
  dlc::linearize(problem, colored, 1);
  std::fill(f.target.normals.begin(), f.target.normals.end(), 0.0f);
  double bare[dlc::kSums];
  dlc::linearize(problem, bare, 1);
  CHECK(std::memcmp(bare, colored, sizeof bare) == 0 && bare[dlc::kCost] > 0.0);
}

void test_no_correspondences() {
  Fixture f;
  dlc::LinearizeProblem problem = f.problem(dlc::Kind::kPointToPlane, dlc::Kernel::kL2, 1.0);
  problem.max_distance = 0.0f;
  double sums[dlc::kSums];
  dlc::linearize(problem, sums, 2);
  CHECK(std::all_of(sums, sums + dlc::kSums, [](double x) { return x == 0.0; }));
  CHECK(std::all_of(f.indices.begin(), f.indices.end(), [](int64_t i) { return i == -1; }));
  problem.n = 0;
  dlc::linearize(problem, sums, 2);
  CHECK(sums[dlc::kCount] == 0.0);
}

}  // namespace

int main() {
  test_same_bits();
  test_one_by_one();
  test_generalized_roads();
  test_gradient();
  test_colored_shares();
  test_no_correspondences();
  if (failures() == 0) std::puts("linearize: ok");
  return failures() != 0;
}
