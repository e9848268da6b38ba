#include "core/morton_code.hpp"
#include "cuda/sort.cuh"
#include "cuda/tree.hpp"

namespace dlc {
namespace cuda {
namespace {

constexpr int kBoundsBlocks = 256;
constexpr int32_t kNotFinite = 0x7f800000;

// Signed integers in the order of the floats, and back.
DLC_HD int32_t ordered_bits(float value) {
  const int32_t bits = bits_of(value);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
DLC_HD float from_ordered(int32_t bits) { return from_bits(bits >= 0 ? bits : bits ^ 0x7fffffff); }

__global__ void start_bounds(int32_t* bounds) {
  if (threadIdx.x < 6) bounds[threadIdx.x] = threadIdx.x < 3 ? 0x7fffffff : -0x7fffffff - 1;
}

__global__ void __launch_bounds__(kThreads) find_bounds(const float* points, int64_t n, int32_t* bounds) {
  int32_t best[6];
  for (int a = 0; a < 6; ++a) best[a] = a < 3 ? 0x7fffffff : -0x7fffffff - 1;
  for (int64_t i = thread_number(); i < n; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    for (int a = 0; a < 3; ++a) {
      const float x = points[3 * i + a];
      if ((bits_of(x) & kNotFinite) == kNotFinite) continue;
      const int32_t bits = ordered_bits(x);
      if (bits < best[a]) best[a] = bits;
      if (bits > best[3 + a]) best[3 + a] = bits;
    }
  for (int a = 0; a < 6; ++a) {
    for (int step = 16; step > 0; step /= 2) {
      const int32_t other = __shfl_xor_sync(~0u, best[a], step);
      best[a] = (a < 3) == (other < best[a]) ? other : best[a];
    }
    if (threadIdx.x % 32 != 0) continue;
    if (a < 3) atomicMin(bounds + a, best[a]);
    else atomicMax(bounds + a, best[a]);
  }
}

__global__ void __launch_bounds__(kThreads)
    morton_keys(const float* points, int64_t n, int bits, const int32_t* bounds, uint64_t* keys, int32_t* values) {
  const int64_t i = thread_number();
  if (i >= n) return;
  float lo[3], hi[3];
  for (int a = 0; a < 3; ++a) lo[a] = from_ordered(bounds[a]), hi[a] = from_ordered(bounds[3 + a]);
  keys[i] = MortonGrid(lo, hi, bits).code(points + 3 * i);
  values[i] = static_cast<int32_t>(i);
}

__global__ void __launch_bounds__(kThreads)
    fill_leaves(const float* points, int64_t n, const int32_t* order, int64_t room, TreePoint* out) {
  const int64_t at = thread_number();
  if (at >= room) return;
  const float inf = from_bits(kNotFinite);
  TreePoint p{{inf, inf, inf}, kNoPoint};
  if (at < n) {
    p.index = order[at];
    for (int a = 0; a < 3; ++a) p.x[a] = points[3 * static_cast<int64_t>(p.index) + a];
  }
  out[at] = p;
}

// One thread a child: its box, from the points of a leaf or the boxes of a node.
__global__ void __launch_bounds__(kThreads)
    fill_level(const TreePoint* points, TreeNode* nodes, int32_t first, int32_t below, int64_t children, int64_t room) {
  const int64_t child = thread_number();
  if (child >= room) return;
  const float inf = from_bits(kNotFinite);
  TreeNode& node = nodes[first + child / kWidth];
  for (int a = 0; a < 3; ++a) {
    float lo = inf, hi = -inf;
    for (int i = 0; i < kWidth && child < children; ++i) {
      float least, most;
      if (below < 0) {
        const TreePoint& p = points[kLeaf * child + i];
        if (p.index == kNoPoint) break;
        least = most = p.x[a];
      } else {
        least = nodes[below + child].lo[a][i], most = nodes[below + child].hi[a][i];
      }
      lo = least < lo ? least : lo;  // NaN, which is never near, stays outside
      hi = most > hi ? most : hi;
    }
    node.lo[a][child % kWidth] = lo, node.hi[a][child % kWidth] = hi;
  }
}

void sort_by_code(Call call, const float* points, int64_t n, int bits, const SortBuffers& buffers, int32_t* order) {
  launch(call, dim3(1), dim3(32), start_bounds, buffers.bounds);
  launch(call, dim3(std::min<unsigned>(blocks_for(n), kBoundsBlocks)), dim3(kThreads), find_bounds, points, n,
         buffers.bounds);
  launch_each(call, n, morton_keys, points, n, bits, buffers.bounds, buffers.keys, buffers.values);
  sort_pairs(call, buffers, order, n, 3 * bits);
}

}  // namespace

void morton_order(Call call, const float* points, int64_t n, int bits, int32_t* order, Workspace workspace) {
  if (n == 0) return;
  const OnDevice scope(call);
  sort_by_code(call, points, n, bits, cut(workspace, n), order);
}

std::size_t tree_bytes(int64_t n) {
  const Tree tree = layout(nullptr, n);
  return static_cast<std::size_t>(kLeaf * tree.leaves) * sizeof(TreePoint) +
         static_cast<std::size_t>(node_count(tree)) * sizeof(TreeNode) + n * sizeof(int32_t);
}

void build_tree(Call call, const float* points, int64_t n, void* memory, Workspace workspace) {
  if (n < 1 || n >= kNoPoint) throw std::invalid_argument("a tree holds 1 to 2^31 - 2 points");
  const OnDevice scope(call);
  const Tree tree = layout(memory, n);
  TreePoint* const leaves = const_cast<TreePoint*>(tree.points);
  TreeNode* const nodes = const_cast<TreeNode*>(tree.nodes);
  int32_t* const order = reinterpret_cast<int32_t*>(nodes + node_count(tree));
  sort_by_code(call, points, n, kMortonBits, cut(workspace, n), order);
  launch_each(call, kLeaf * tree.leaves, fill_leaves, points, n, order, kLeaf * tree.leaves, leaves);
  int64_t children = tree.leaves;
  for (int level = 0; level < tree.height; ++level) {
    const int64_t width = (children + kWidth - 1) / kWidth;
    launch_each(call, kWidth * width, fill_level, leaves, nodes, tree.first[level],
                level ? tree.first[level - 1] : -1, children, kWidth * width);
    children = width;
  }
}

}  // namespace cuda
}  // namespace dlc
