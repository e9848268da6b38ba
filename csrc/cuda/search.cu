#include "cuda/search.cuh"

#include <cmath>
#include <type_traits>

namespace dlc {
namespace cuda {
namespace {

constexpr int kTile = 256;  // points of a small cloud in shared memory at a time

DLC_DEVICE void write_row(const Nearest& found, int, float* distances, int64_t* indices) {
  const bool any = found.index != kNoPoint;
  *distances = any ? std::sqrt(found.bound) : from_bits(0x7f800000);
  *indices = any ? found.index : -1;
}

template <int capacity>
DLC_DEVICE void write_row(const KNearest<capacity>& found, int k, float* distances, int64_t* indices) {
  for (int j = 0; j < k; ++j) {
    const bool any = j < found.count;
    distances[j] = any ? std::sqrt(key_distance(found.keys[j])) : from_bits(0x7f800000);
    indices[j] = any ? key_index(found.keys[j]) : -1;
  }
}

DLC_DEVICE Nearest start(const Nearest*, float bound, int) { return Nearest(bound); }
template <int capacity>
DLC_DEVICE KNearest<capacity> start(const KNearest<capacity>*, float bound, int k) {
  return KNearest<capacity>(bound, k);
}

template <class Found>
__global__ void __launch_bounds__(kThreads) knn_kernel(Tree tree, const float* queries, const int32_t* order, int64_t m,
                                                       int k, float bound, float* distances, int64_t* indices) {
  const int64_t thread = thread_number();
  if (thread >= m) return;
  const int64_t i = query_of(thread, order);
  float q[3];
  load_query(queries, i, q);
  Found found = start(static_cast<const Found*>(nullptr), bound, k);
  traverse(tree, q, found);
  write_row(found, k, distances + i * k, indices + i * k);
}

// Block (x, y): queries x * kThreads and on of cloud y.
template <class Found>
__global__ void __launch_bounds__(kThreads)
    ragged_kernel(const float* points, const int64_t* point_splits, const float* queries, const int64_t* query_splits,
                  int64_t batch, int k, float bound, float* distances, int64_t* indices) {
  __shared__ TreePoint tile[kTile];
  for (int64_t cloud = blockIdx.y; cloud < batch; cloud += gridDim.y) {
    const int64_t first = point_splits[cloud], size = point_splits[cloud + 1] - first;
    const int64_t i = query_splits[cloud] + thread_number();
    if (query_splits[cloud] + static_cast<int64_t>(blockIdx.x) * blockDim.x >= query_splits[cloud + 1]) continue;
    const bool real = i < query_splits[cloud + 1];
    float q[3] = {0.0f, 0.0f, 0.0f};
    if (real) load_query(queries, i, q);
    Found found = start(static_cast<const Found*>(nullptr), bound, k);
    for (int64_t begin = 0; begin < size; begin += kTile) {
      const int count = static_cast<int>(size - begin < kTile ? size - begin : kTile);
      __syncthreads();
      for (int t = threadIdx.x; t < count; t += blockDim.x) {
        TreePoint p;
        for (int a = 0; a < 3; ++a) p.x[a] = points[3 * (first + begin + t) + a];
        p.index = static_cast<int32_t>(begin + t);
        tile[t] = p;
      }
      __syncthreads();
      if (real && bound >= 0.0f && is_finite(q)) scan_points(tile, count, q, found);
    }
    if (real) write_row(found, k, distances + i * k, indices + i * k);
  }
}

__global__ void __launch_bounds__(kThreads) count_kernel(Tree tree, const float* queries, const int32_t* order,
                                                         int64_t m, float bound, int64_t* counts) {
  const int64_t thread = thread_number();
  if (thread >= m) return;
  const int64_t i = query_of(thread, order);
  float q[3];
  load_query(queries, i, q);
  Counter found(bound);
  traverse(tree, q, found);
  counts[i] = found.count;
}

__global__ void __launch_bounds__(kThreads)
    fill_kernel(Tree tree, const float* queries, const int32_t* order, int64_t m, float bound, const int64_t* splits,
                uint64_t* keys, float* distances, int64_t* indices) {
  const int64_t thread = thread_number();
  if (thread >= m) return;
  const int64_t i = query_of(thread, order);
  float q[3];
  load_query(queries, i, q);
  Writer found(bound, keys + splits[i]);
  traverse(tree, q, found);
  heap_sort(keys + splits[i], splits[i + 1] - splits[i]);
  for (int64_t j = splits[i]; j < splits[i + 1]; ++j) {
    distances[j] = std::sqrt(key_distance(keys[j]));
    indices[j] = key_index(keys[j]);
  }
}

template <class Body>
void with_any_collector(int k, const Body& body) {
  if (k == 1) body(static_cast<Nearest*>(nullptr));
  else with_collector(k, body);
}

}  // namespace

void knn(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, int k, float max_distance,
         float* distances, int64_t* indices) {
  const OnDevice scope(call);
  with_any_collector(k, [&](auto* collector) {
    using Found = std::remove_pointer_t<decltype(collector)>;
    launch_each(call, m, knn_kernel<Found>, layout(tree.memory, tree.n), queries, order, m, k,
                bound_below(max_distance), distances, indices);
  });
}

void knn_ragged(Call call, const float* points, const int64_t* point_splits, const float* queries,
                const int64_t* query_splits, int64_t batch, int64_t longest, int k, float max_distance,
                float* distances, int64_t* indices) {
  const OnDevice scope(call);
  const dim3 grid(blocks_for(longest), static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
  const auto search = [&](auto* collector) {
    using Found = std::remove_pointer_t<decltype(collector)>;
    launch(call, grid, dim3(kThreads), ragged_kernel<Found>, points, point_splits, queries, query_splits, batch, k,
           bound_below(max_distance), distances, indices);
  };
  // 64 neighbours and the point itself are 65
  if (k > kMaxNeighbours && k <= kMaxRaggedNeighbours) search(static_cast<KNearest<kMaxRaggedNeighbours>*>(nullptr));
  else with_any_collector(k, search);
}

void radius_count(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, float radius,
                  int64_t* counts) {
  const OnDevice scope(call);
  launch_each(call, m, count_kernel, layout(tree.memory, tree.n), queries, order, m, bound_below(radius), counts);
}

void radius_fill(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, float radius,
                 const int64_t* splits, uint64_t* keys, float* distances, int64_t* indices) {
  const OnDevice scope(call);
  launch_each(call, m, fill_kernel, layout(tree.memory, tree.n), queries, order, m, bound_below(radius), splits, keys,
              distances, indices);
}

}  // namespace cuda
}  // namespace dlc
