// Voxels and normals by the CUDA kernels, run on the host, against the CPU core: the same bits.
#include "check.hpp"
#include "core/kdtree.hpp"
#include "core/normals.hpp"
#include "core/voxel.hpp"
#include "cuda/device.hpp"
#include "on_device.hpp"

using shapes::kInfinity;

namespace {

void check_normals(const std::vector<float>& points, int k, float limit) {
  const std::size_t n = points.size() / 3;
  const dlc::KdTree tree(points.data(), n, 1);
  const DeviceTree on_device(points);
  std::vector<float> expected(3 * n), expected_covariances(6 * n), found(3 * n, -7), covariances(6 * n, -7);
  dlc::normals(tree, points.data(), n, k, limit, expected.data(), expected_covariances.data(), 1);
  const std::vector<int32_t> order = device_order(points, 10);
  dlc::cuda::normals(kCall, on_device.tree(), points.data(), k % 2 ? order.data() : nullptr, n, k, limit, found.data(),
                     covariances.data());
  CHECK(found == expected);
  CHECK(covariances == expected_covariances);

  std::vector<int64_t> rows(n * static_cast<std::size_t>(k));
  std::vector<float> distances(rows.size()), again(3 * n, -7), on_host(3 * n, -7);
  dlc::knn(tree, points.data(), n, k, limit, distances.data(), rows.data(), 1);
  dlc::cuda::normals_of_rows(kCall, points.data(), n, rows.data(), 1, n, k, again.data());
  dlc::normals_of_rows(points.data(), n, rows.data(), 1, n, k, on_host.data(), 1);
  CHECK(again == expected);
  CHECK(on_host == expected);
}

void check_voxels(const std::vector<float>& points, double size) {
  const std::size_t n = points.size() / 3;
  std::vector<int64_t> expected_inverse(n), inverse(n, -7);
  std::vector<float> expected(3 * n), means(3 * n, -7);
  const int64_t voxels = dlc::voxel_downsample(points.data(), n, size, expected_inverse.data(), expected.data(), 1);
  double origin[3];
  for (int a = 0; a < 3; ++a) {
    float low = points[static_cast<std::size_t>(a)];
    for (std::size_t i = 0; i < n; ++i) low = std::min(low, points[3 * i + static_cast<std::size_t>(a)]);
    origin[a] = low - 0.5 * size;
  }
  SortMemory sort(n);
  std::vector<uint64_t> codes(n);
  std::vector<int32_t> order(n);
  dlc::cuda::voxel_order(kCall, points.data(), n, origin, size, codes.data(), order.data(), sort.workspace());
  std::vector<int64_t> starts;
  for (std::size_t i = 0; i < n; ++i)
    if (i == 0 || codes[i] != codes[i - 1]) starts.push_back(static_cast<int64_t>(i));
  CHECK(static_cast<int64_t>(starts.size()) == voxels);
  dlc::cuda::voxel_means(kCall, points.data(), n, order.data(), starts.data(), voxels, inverse.data(), means.data());
  CHECK(inverse == expected_inverse);
  CHECK(std::equal(means.begin(), means.begin() + 3 * voxels, expected.begin()));
}

}  // namespace

int main() {
  unsigned seed = 0;
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {1, 2, 40, 900}) {
      const std::vector<float> points = shapes::points(shape, n, seed++);
      for (const int k : {1, 5, 20, 64}) check_normals(points, k, k == 5 ? 0.1f : kInfinity);
      for (const double size : {1e-4, 0.11, 3.0}) check_voxels(points, size);
    }
  return failures();
}
