// A bounding volume hierarchy without pointers, for host and device: points along the Morton curve, eight to a leaf,
// eight children to a node. It suits any density, and it is exact for the same reason as KdTree: lower bounds are rounded
// as distances are, so no pruned point could have won, and the answer is the smallest (d2, index) whatever the order.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/linalg.hpp"

namespace dlc {
namespace cuda {

constexpr int kLeaf = 8, kWidth = 8;
constexpr int kMaxHeight = 11;                      // 8^11 leaves
constexpr int kStack = (kWidth - 1) * kMaxHeight;  // what a descent can leave behind
constexpr int32_t kNoPoint = 0x7fffffff;
constexpr float kLargest = 3.402823466e38f;

struct alignas(16) TreePoint {
  float x[3];
  int32_t index;  // kNoPoint: padding, at +inf
};

struct alignas(16) TreeNode {  // the children's boxes, side by side; a missing child has lo = +inf, hi = -inf
  float lo[3][kWidth];
  float hi[3][kWidth];
};

struct Tree {
  const TreePoint* points;  // whole leaves
  const TreeNode* nodes;    // the lowest level first, the root last
  int height;               // levels of nodes
  int32_t first[kMaxHeight];  // of each level
  int64_t leaves;
};

inline Tree layout(const void* memory, int64_t n) {
  Tree tree{};
  tree.leaves = (n + kLeaf - 1) / kLeaf;
  tree.points = static_cast<const TreePoint*>(memory);
  tree.nodes = reinterpret_cast<const TreeNode*>(tree.points + kLeaf * tree.leaves);
  int64_t at = 0;
  for (int64_t width = tree.leaves;;) {
    width = (width + kWidth - 1) / kWidth;
    tree.first[tree.height++] = static_cast<int32_t>(at);
    at += width;
    if (width <= 1) break;
  }
  return tree;
}
inline int64_t node_count(const Tree& tree) { return tree.first[tree.height - 1] + 1; }

// Compiled without contraction, as on the host: a fused multiply-add would give another distance.
DLC_HD float square_sum(float x, float y, float z) { return x * x + y * y + z * z; }

DLC_HD int32_t bits_of(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
DLC_HD float from_bits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// (d2, index) as one integer in lexicographic order.
DLC_HD uint64_t make_key(float d2, int32_t index) {
  return static_cast<uint64_t>(static_cast<uint32_t>(bits_of(d2))) << 32 | static_cast<uint32_t>(index);
}
DLC_HD int32_t key_index(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }
DLC_HD float key_distance(uint64_t key) { return from_bits(static_cast<int32_t>(key >> 32)); }

// Collectors: `bound` is the largest d2 still wanted (negative: none); offer(d2, index) is called with d2 <= bound.

struct Nearest {
  float bound;
  int32_t index;

  DLC_HD explicit Nearest(float limit) : bound(limit), index(kNoPoint) {}
  DLC_HD void offer(float d2, int32_t candidate) {
    if (d2 < bound || candidate < index) bound = d2, index = candidate;
  }
};

template <int capacity>
struct KNearest {
  float bound;
  int k, count;
  uint64_t keys[capacity];  // ascending

  DLC_HD KNearest(float limit, int wanted) : bound(limit), k(wanted), count(0) {}
  DLC_HD void offer(float d2, int32_t index) {
    const uint64_t key = make_key(d2, index);
    if (count == k && key > keys[k - 1]) return;
    int at = count < k ? count++ : k - 1;
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
    if (count == k) bound = key_distance(keys[k - 1]);
  }
};

struct Counter {
  float bound;
  int64_t count;

  DLC_HD explicit Counter(float limit) : bound(limit), count(0) {}
  DLC_HD void offer(float, int32_t) { ++count; }
};

struct Writer {  // of all that is near, in no order
  float bound;
  uint64_t* out;

  DLC_HD Writer(float limit, uint64_t* keys) : bound(limit), out(keys) {}
  DLC_HD void offer(float d2, int32_t index) { *out++ = make_key(d2, index); }
};

DLC_HD void order_pair(int32_t& a, int32_t& b) {
  const int32_t low = a < b ? a : b, high = a < b ? b : a;
  a = low, b = high;
}

DLC_HD void sort8(int32_t k[8]) {  // Batcher's network
  order_pair(k[0], k[1]), order_pair(k[2], k[3]), order_pair(k[4], k[5]), order_pair(k[6], k[7]);
  order_pair(k[0], k[2]), order_pair(k[1], k[3]), order_pair(k[4], k[6]), order_pair(k[5], k[7]);
  order_pair(k[1], k[2]), order_pair(k[5], k[6]);
  order_pair(k[0], k[4]), order_pair(k[1], k[5]), order_pair(k[2], k[6]), order_pair(k[3], k[7]);
  order_pair(k[2], k[4]), order_pair(k[3], k[5]);
  order_pair(k[1], k[2]), order_pair(k[3], k[4]), order_pair(k[5], k[6]);
}

DLC_HD float largest3(float a, float b, float c) {
  const float ab = a > b ? a : b;
  return ab > c ? ab : c;
}

// Lower bounds of the children's d2: the bits of a non-negative float are in its order, and the lowest three are given
// to the child's number, which only lowers the bound.
DLC_HD void open_node(const TreeNode& node, const float q[3], int32_t keys[kWidth]) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int c = 0; c < kWidth; ++c) {
    const float x = largest3(node.lo[0][c] - q[0], q[0] - node.hi[0][c], 0.0f);
    const float y = largest3(node.lo[1][c] - q[1], q[1] - node.hi[1][c], 0.0f);
    const float z = largest3(node.lo[2][c] - q[2], q[2] - node.hi[2][c], 0.0f);
    keys[c] = (bits_of(square_sum(x, y, z)) & ~(kWidth - 1)) | c;
  }
}

template <class Found>
DLC_HD void scan_points(const TreePoint* points, int count, const float q[3], Found& found) {
  for (int i = 0; i < count; ++i) {
    const TreePoint p = points[i];
    const float d2 = square_sum(q[0] - p.x[0], q[1] - p.x[1], q[2] - p.x[2]);
    if (d2 <= found.bound) found.offer(d2, p.index);
  }
}

DLC_HD bool is_finite(const float q[3]) { return (q[0] - q[0]) + (q[1] - q[1]) + (q[2] - q[2]) == 0.0f; }

template <class Found>
DLC_HD void traverse(const Tree& tree, const float q[3], Found& found) {
  if (!(found.bound >= 0.0f) || !is_finite(q)) return;
  int32_t bounds[kStack];
  uint32_t waiting[kStack];  // height above the leaves in the highest four bits
  constexpr int kShift = 28;
  int depth = 0;
  uint32_t here = static_cast<uint32_t>(tree.height) << kShift;
  for (;;) {
    const int height = static_cast<int>(here >> kShift);
    const uint32_t number = here & ((1u << kShift) - 1);
    if (height > 0) {
      int32_t keys[kWidth];
      open_node(tree.nodes[tree.first[height - 1] + number], q, keys);
      sort8(keys);
      const int32_t limit = bits_of(found.bound);
      const uint32_t child = static_cast<uint32_t>(height - 1) << kShift | number * kWidth;
      for (int c = kWidth - 1; c > 0; --c) {
        if ((keys[c] & ~(kWidth - 1)) > limit) continue;
        bounds[depth] = keys[c] & ~(kWidth - 1);
        waiting[depth++] = child + static_cast<uint32_t>(keys[c] & (kWidth - 1));
      }
      if ((keys[0] & ~(kWidth - 1)) <= limit) {
        here = child + static_cast<uint32_t>(keys[0] & (kWidth - 1));
        continue;
      }
    } else {
      scan_points(tree.points + static_cast<int64_t>(kLeaf) * number, kLeaf, q, found);
    }
    do {
      if (depth == 0) return;
      --depth;
    } while (bounds[depth] > bits_of(found.bound));
    here = waiting[depth];
  }
}

// Ascending, in place.
DLC_HD void heap_sort(uint64_t* keys, int64_t count) {
  for (int64_t built = count / 2, end = count; end > 1;) {
    uint64_t moving;
    if (built > 0) {
      moving = keys[--built];
    } else {
      moving = keys[--end];
      keys[end] = keys[0];
      if (end == 1) {
        keys[0] = moving;
        return;
      }
    }
    int64_t at = built;
    for (int64_t child = 2 * at + 1; child < end; child = 2 * at + 1) {
      if (child + 1 < end && keys[child + 1] > keys[child]) ++child;
      if (keys[child] <= moving) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = moving;
  }
}

}  // namespace cuda
}  // namespace dlc
