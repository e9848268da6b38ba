// The fused linearisation of the CUDA kernels, run on the host, against the CPU core: the same matches, sums that differ
// by the order of additions alone.
#include "check.hpp"
#include "core/kdtree.hpp"
#include "core/linearize.hpp"
#include "core/normals.hpp"
#include "cuda/device.hpp"
#include "on_device.hpp"

using shapes::kInfinity;

namespace {

struct Clouds {
  Clouds(int64_t n, int64_t m, unsigned seed)
      : source(shapes::points("surface", n, seed)), target(shapes::points("surface", m, seed + 1)),
        tree(target.data(), m, 1), on_device(target) {
    measure(source, source_normals, source_covariances);
    measure(target, target_normals, target_covariances);
    source_intensities = shapes::points("surface", n, seed + 2);  // (n) and (m, 4) numbers of any kind
    source_intensities.resize(static_cast<std::size_t>(n));
    target_intensities = shapes::points("surface", 2 * m, seed + 3);
    target_intensities.resize(static_cast<std::size_t>(4 * m));
  }
  static void measure(const std::vector<float>& points, std::vector<float>& normals, std::vector<float>& covariances) {
    const std::size_t count = points.size() / 3;
    normals.resize(3 * count), covariances.resize(6 * count);
    dlc::normals(dlc::KdTree(points.data(), count, 1), points.data(), count, 12, kInfinity, normals.data(),
                 covariances.data(), 1);
  }
  std::vector<float> source, target, source_normals, source_covariances, target_normals, target_covariances;
  std::vector<float> source_intensities, target_intensities;
  dlc::KdTree tree;
  DeviceTree on_device;
};

struct Answer {
  explicit Answer(int64_t n) : indices(static_cast<std::size_t>(n), -7), distances(static_cast<std::size_t>(n), -7) {}
  std::vector<int64_t> indices;
  std::vector<float> distances;
  double sums[dlc::kSums];
};

void check(const Clouds& c, dlc::Kind kind, dlc::Kernel kernel, float limit, bool search) {
  const int64_t n = static_cast<int64_t>(c.source.size() / 3);
  const double xi[6] = {0.1, -0.05, 0.2, 0.01, 0.02, -0.03};
  dlc::cuda::DeviceLinearizeProblem device{};
  double* const pose = device.host_pose;
  dlc::se3_exp(xi, pose);
  Answer expected(n), found(n);
  if (!search)
    for (int64_t i = 0; i < n; ++i) expected.indices[i] = found.indices[i] = i % 3 ? i % c.tree.size() : -1;
  const dlc::CorrespondingClouds clouds{
      c.source.data(),         c.source_normals.data(),     c.source_covariances.data(),
      c.target.data(),         c.target_normals.data(),     c.target_covariances.data(),
      c.source_intensities.data(), c.target_intensities.data(), 0.8};
  const dlc::LinearizeProblem host{kind, clouds.source, clouds.source_normals, clouds.source_covariances, n,
                                   search ? &c.tree : nullptr, clouds.target, clouds.target_normals,
                                   clouds.target_covariances, pose, limit, kernel, 0.05, expected.indices.data(),
                                   expected.distances.data(), nullptr, clouds.source_intensities,
                                   clouds.target_intensities, clouds.lambda_geometric};
  dlc::linearize(host, expected.sums, 1);

  device.kind = kind, device.clouds = clouds, device.n = n;
  if (search) device.tree = c.on_device.tree();
  device.max_distance = limit, device.kernel = kernel, device.kernel_parameter = 0.05;
  device.indices = found.indices.data(), device.distances = found.distances.data();
  std::vector<double> partials(static_cast<std::size_t>(dlc::cuda::linearize_partials(n)));
  int32_t finished = 0;
  double in_memory[16];  // where the pose is the device's, the host's has no say
  std::copy(pose, pose + 16, in_memory);
  if (!search) device.pose = in_memory, std::fill(pose, pose + 16, std::nan(""));
  dlc::cuda::linearize(kCall, device, partials.data(), &finished, found.sums);
  CHECK(finished == 0);
  CHECK(found.indices == expected.indices && found.distances == expected.distances);
  const double scale = 1 + std::fabs(expected.sums[dlc::kHessian]);
  for (int v = 0; v < dlc::kSums; ++v)
    CHECK(std::fabs(found.sums[v] - expected.sums[v]) <= 1e-11 * std::max(scale, std::fabs(expected.sums[v])));
}

}  // namespace

int main() {
  const Clouds small(50, 30, 1), large(1500, 900, 2), huge(140000, 40, 3), none(0, 5, 4);
  for (int kind = 0; kind < 5; ++kind) {
    for (int kernel = 0; kernel < 6; ++kernel)
      for (const Clouds* c : {&small, &large, &none})
        for (const bool search : {true, false})
          check(*c, static_cast<dlc::Kind>(kind), static_cast<dlc::Kernel>(kernel), 0.1f, search);
    check(large, static_cast<dlc::Kind>(kind), dlc::Kernel::kL2, kInfinity, true);
  }
  check(huge, dlc::Kind::kPointToPlane, dlc::Kernel::kL2, kInfinity, false);  // a thread has several points

  Clouds broken(40, 30, 5);
  broken.source[7] = std::nanf("");
  dlc::cuda::DeviceLinearizeProblem problem{};
  const double identity[6] = {};
  dlc::se3_exp(identity, problem.host_pose);
  Answer answer(40);
  problem.clouds = {broken.source.data(), nullptr, nullptr, broken.target.data(), nullptr, nullptr};
  problem.n = 40, problem.tree = broken.on_device.tree(), problem.max_distance = kInfinity;
  problem.kernel_parameter = 1, problem.indices = answer.indices.data(), problem.distances = answer.distances.data();
  std::vector<double> partials(static_cast<std::size_t>(dlc::cuda::linearize_partials(40)));
  int32_t finished = 0;
  dlc::cuda::linearize(kCall, problem, partials.data(), &finished, answer.sums);
  CHECK(std::isnan(answer.sums[dlc::kCost]) && answer.indices[2] == -1);
  return failures();
}
