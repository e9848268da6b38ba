// Voxels, and the normals and covariances of neighbourhoods.
#include <type_traits>

#include "core/morton_code.hpp"
#include "core/neighbourhood.hpp"
#include "cuda/search.cuh"
#include "cuda/sort.cuh"

namespace dlc {
namespace cuda {
namespace {

template <class Found>
__global__ void __launch_bounds__(kThreads) normals_kernel(Tree tree, const float* points, const int32_t* order,
                                                           int64_t n, int k, float bound, float* normals,
                                                           float* covariances) {
  const int64_t thread = thread_number();
  if (thread >= n) return;
  const int64_t i = query_of(thread, order);
  float q[3];
  load_query(points, i, q);
  Found found(bound, k);
  traverse(tree, q, found);
  Spread spread;
  for (int j = 0; j < found.count; ++j) spread.add(points + 3 * static_cast<int64_t>(key_index(found.keys[j])), q);
  double covariance[6];
  spread.covariance(covariance);
  normal_of(covariance, normals + 3 * i);
  for (int a = 0; a < 6; ++a) covariances[6 * i + a] = static_cast<float>(covariance[a]);
}

__global__ void __launch_bounds__(kThreads)
    voxel_keys(const float* points, int64_t n, VoxelGrid grid, uint64_t* keys, int32_t* values) {
  const int64_t i = thread_number();
  if (i >= n) return;
  keys[i] = grid.code(points + 3 * i);
  values[i] = static_cast<int32_t>(i);
}

__global__ void __launch_bounds__(kThreads) copy_codes(const uint64_t* from, int64_t n, uint64_t* to) {
  const int64_t i = thread_number();
  if (i < n) to[i] = from[i];
}

// One thread a voxel: its points are summed in their order, as on the host.
__global__ void __launch_bounds__(kThreads)
    means_kernel(const float* points, int64_t n, const int32_t* order, const int64_t* starts, int64_t voxels,
                 int64_t* inverse, float* means) {
  const int64_t v = thread_number();
  if (v >= voxels) return;
  const int64_t first = starts[v], past = v + 1 < voxels ? starts[v + 1] : n;
  double sum[3] = {0, 0, 0};
  for (int64_t i = first; i < past; ++i) {
    const int64_t index = order[i];
    for (int a = 0; a < 3; ++a) sum[a] += points[3 * index + a];
    inverse[index] = v;
  }
  for (int a = 0; a < 3; ++a) means[3 * v + a] = static_cast<float>(sum[a] / static_cast<double>(past - first));
}

__global__ void __launch_bounds__(kThreads)
    row_normals_kernel(const float* points, int64_t m, const int64_t* rows, int64_t n, int64_t all, int k,
                       float* normals) {
  const int64_t i = thread_number();
  if (i < all) normal_of_rows(points + 3 * m * (i / n), m, rows + i * k, k, normals + 3 * i);
}

}  // namespace

void normals_of_rows(Call call, const float* points, int64_t m, const int64_t* rows, int64_t batch, int64_t n, int k,
                     float* normals) {
  const OnDevice scope(call);
  launch_each(call, batch * n, row_normals_kernel, points, m, rows, n, batch * n, k, normals);
}

void normals(Call call, TreeMemory tree, const float* points, const int32_t* order, int64_t n, int k,
             float max_distance, float* normals, float* covariances) {
  const OnDevice scope(call);
  with_collector(k, [&](auto* collector) {
    using Found = std::remove_pointer_t<decltype(collector)>;
    launch_each(call, n, normals_kernel<Found>, layout(tree.memory, tree.n), points, order, n, k,
                bound_below(max_distance), normals, covariances);
  });
}

void voxel_order(Call call, const float* points, int64_t n, const double host_origin[3], double voxel_size,
                 uint64_t* codes, int32_t* order, Workspace workspace) {
  const OnDevice scope(call);
  const SortBuffers buffers = cut(workspace, n);
  const VoxelGrid grid{{host_origin[0], host_origin[1], host_origin[2]}, voxel_size};
  launch_each(call, n, voxel_keys, points, n, grid, buffers.keys, buffers.values);
  sort_pairs(call, buffers, order, n, 3 * kMortonBits);
  launch_each(call, n, copy_codes, buffers.sorted_keys, n, codes);
}

void voxel_means(Call call, const float* points, int64_t n, const int32_t* order, const int64_t* starts, int64_t voxels,
                 int64_t* inverse, float* means) {
  const OnDevice scope(call);
  launch_each(call, voxels, means_kernel, points, n, order, starts, voxels, inverse, means);
}

}  // namespace cuda
}  // namespace dlc
