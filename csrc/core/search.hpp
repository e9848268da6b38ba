// The traversal of KdTree and what it collects; internal to kdtree.cpp.
//
// A collector has `bound`, the largest d2 still wanted (negative or NaN: none), which offers may lower, and offer(d2, index).
// The traversal offers every point with d2 <= bound, in an order of its own. It keeps, per level, the lower bounds of the
// children yet to be visited, as integers: the bits of a non-negative float are in its order, the lowest three are given
// to the child's lane (which only lowers the bound), so one minimum yields the nearest child and its bound.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/kdtree.hpp"
#include "core/simd.hpp"

#if DLC_HAS_AVX2
#include <immintrin.h>
#endif

namespace dlc {
namespace search {

constexpr int kMaxLevels = 10;  // 16 * 8^10 points
constexpr int32_t kLaneMask = KdTree::kWidth - 1;
constexpr int32_t kVisited = std::numeric_limits<int32_t>::max();

inline int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float squared_distance(const float a[3], const float b[3]) {
  const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
  return x * x + y * y + z * z;
}

// (d2, index) as one integer in lexicographic order.
inline uint64_t make_key(float d2, int32_t index) {
  return static_cast<uint64_t>(static_cast<uint32_t>(bits_of(d2))) << 32 | static_cast<uint32_t>(index);
}
inline int32_t key_index(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }
inline float key_distance(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  float d2;
  std::memcpy(&d2, &bits, sizeof d2);
  return d2;
}

struct Nearest {
  float bound;
  int32_t index = std::numeric_limits<int32_t>::max();

  explicit Nearest(float limit) : bound(limit) {}
  bool any() const { return index != std::numeric_limits<int32_t>::max(); }
  void offer(float d2, int32_t candidate) {
    if (d2 < bound || (d2 == bound && candidate < index)) {
      bound = d2;
      index = candidate;
    }
  }
};

struct NearestTwo {  // the nearest, and the d2 of the second
  float bound;
  Nearest first;

  explicit NearestTwo(float limit) : bound(limit), first(limit) {}
  void offer(float d2, int32_t candidate) {
    const Nearest before = first;
    first.offer(d2, candidate);
    if (first.index != before.index) d2 = before.bound;  // the former first is second now, or the limit is
    bound = std::min(bound, d2);
  }
};

struct KSorted {  // few neighbours: insertion into a sorted array, which loses its last
  static constexpr int kMax = 64;
  static constexpr uint64_t kEmpty = std::numeric_limits<int64_t>::max();  // signed comparison is all that AVX2 has
  float bound;
  int k, count = 0;
  alignas(32) uint64_t keys[kMax];

  KSorted(float limit, int wanted) : bound(limit), k(wanted) { std::fill(keys, keys + ((k + 3) & ~3), kEmpty); }

  void offer(float d2, int32_t index) {
    const uint64_t key = make_key(d2, index);
    if (key > keys[k - 1]) return;
    int at = std::min(count, k - 1);
    for (; at > 0 && keys[at - 1] > key; --at) keys[at] = keys[at - 1];
    keys[at] = key;
    added();
  }

  void added() {
    count = std::min(count + 1, k);
    if (count == k) bound = key_distance(keys[k - 1]);
  }

#if DLC_HAS_AVX2
  // Without branches that depend on the data. Beyond k the array holds whatever fell off.
  DLC_AVX2 void offer_avx2(float d2, int32_t index) {
    const uint64_t key = make_key(d2, index);
    if (key > keys[k - 1]) return;
    const __m256i fresh = _mm256_set1_epi64x(static_cast<int64_t>(key));
    __m256i* const four = reinterpret_cast<__m256i*>(keys);
    int v = (k - 1) / 4;
    __m256i here = _mm256_load_si256(four + v);
    for (; v >= 0; --v) {
      const __m256i before = v ? _mm256_load_si256(four + v - 1) : _mm256_setzero_si256();
      const __m256i left = _mm256_blend_epi32(_mm256_permute4x64_epi64(here, 0x93),
                                              _mm256_permute4x64_epi64(before, 0x93), 0x03);
      const __m256i placed = _mm256_blendv_epi8(here, fresh, _mm256_cmpgt_epi64(here, fresh));
      _mm256_store_si256(four + v, _mm256_blendv_epi8(placed, left, _mm256_cmpgt_epi64(left, fresh)));
      here = before;
    }
    added();
  }
#endif
};

struct KHeap {  // many neighbours: the worst on top
  float bound;
  size_t k;
  std::vector<uint64_t> keys;

  KHeap(float limit, int wanted) : bound(limit), k(static_cast<size_t>(wanted)) { keys.reserve(k + 1); }
  void offer(float d2, int32_t index) {
    const uint64_t key = make_key(d2, index);
    if (keys.size() == k && key > keys.front()) return;
    keys.push_back(key);
    std::push_heap(keys.begin(), keys.end());
    if (keys.size() > k) {
      std::pop_heap(keys.begin(), keys.end());
      keys.pop_back();
    }
    if (keys.size() == k) bound = key_distance(keys.front());
  }
};

struct Ball {
  float bound;
  std::vector<std::pair<float, int32_t>>& out;

  void offer(float d2, int32_t index) { out.emplace_back(d2, index); }
};

struct Counter {
  float bound;
  int64_t count = 0;

  explicit Counter(float limit) : bound(limit) {}
  void offer(float, int32_t) { ++count; }
};

struct Frame {
  int32_t keys[KdTree::kWidth];
  int32_t first;
};

inline void open_node(const KdTree::Node& node, const float q[3], Frame& frame) {
  for (int c = 0; c < KdTree::kWidth; ++c) {
    float d[3];
    for (int a = 0; a < 3; ++a) d[a] = std::max(std::max(node.lo[a][c] - q[a], q[a] - node.hi[a][c]), 0.0f);
    frame.keys[c] = (bits_of(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) & ~kLaneMask) | c;
  }
  frame.first = node.first;
}

template <class Found>
void traverse_scalar(const KdTree::Node* nodes, const KdTree::Leaf* leaves, int levels, const float q[3], Found& found) {
  Frame stack[kMaxLevels];
  int depth = 0;
  open_node(nodes[0], q, stack[0]);
  while (depth >= 0) {
    Frame& frame = stack[depth];
    int32_t key = frame.keys[0];
    for (int c = 1; c < KdTree::kWidth; ++c) key = std::min(key, frame.keys[c]);
    if ((key & ~kLaneMask) > bits_of(found.bound)) {
      --depth;
      continue;
    }
    frame.keys[key & kLaneMask] = kVisited;
    const int32_t child = frame.first + (key & kLaneMask);
    if (depth + 1 < levels) {
      open_node(nodes[child], q, stack[++depth]);
      continue;
    }
    const KdTree::Leaf& leaf = leaves[child];
    float d2[KdTree::kLeaf];
    for (int i = 0; i < KdTree::kLeaf; ++i) {
      const float x = q[0] - leaf.x[0][i], y = q[1] - leaf.x[1][i], z = q[2] - leaf.x[2][i];
      d2[i] = x * x + y * y + z * z;
    }
    for (int i = 0; i < KdTree::kLeaf; ++i)
      if (d2[i] <= found.bound) found.offer(d2[i], leaf.index[i]);
  }
}

#if DLC_HAS_AVX2
struct alignas(32) Frame8 {
  __m256i keys;
  int32_t first;
};

struct Query8 {
  __m256 x, y, z;
};

DLC_AVX2 inline __m256 square_sum(__m256 x, __m256 y, __m256 z) {
  return _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(x, x), _mm256_mul_ps(y, y)), _mm256_mul_ps(z, z));
}

DLC_AVX2 inline __m256 outside(const float* lo, const float* hi, __m256 q) {
  const __m256 under = _mm256_sub_ps(_mm256_load_ps(lo), q), over = _mm256_sub_ps(q, _mm256_load_ps(hi));
  return _mm256_max_ps(_mm256_max_ps(under, over), _mm256_setzero_ps());
}

DLC_AVX2 inline Frame8 open_node(const KdTree::Node& node, const Query8& q) {
  const __m256 d2 = square_sum(outside(node.lo[0], node.hi[0], q.x), outside(node.lo[1], node.hi[1], q.y),
                               outside(node.lo[2], node.hi[2], q.z));
  return {_mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi32(kLaneMask), _mm256_castps_si256(d2)),
                          _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          node.first};
}

DLC_AVX2 inline __m256 leaf_distances(const KdTree::Leaf& leaf, int half, const Query8& q) {
  return square_sum(_mm256_sub_ps(q.x, _mm256_load_ps(leaf.x[0] + 8 * half)),
                    _mm256_sub_ps(q.y, _mm256_load_ps(leaf.x[1] + 8 * half)),
                    _mm256_sub_ps(q.z, _mm256_load_ps(leaf.x[2] + 8 * half)));
}

DLC_AVX2 inline uint32_t mask_of(__m256 low, __m256 high) {
  return static_cast<uint32_t>(_mm256_movemask_ps(low)) | static_cast<uint32_t>(_mm256_movemask_ps(high)) << 8;
}

template <class Found>
DLC_AVX2 inline void scan_leaf(const KdTree::Leaf& leaf, const Query8& q, Found& found) {
  const __m256 low = leaf_distances(leaf, 0, q), high = leaf_distances(leaf, 1, q);
  const __m256 bound = _mm256_set1_ps(found.bound);
  uint32_t mask = mask_of(_mm256_cmp_ps(low, bound, _CMP_LE_OQ), _mm256_cmp_ps(high, bound, _CMP_LE_OQ));
  if (!mask) return;
  alignas(32) float d2[KdTree::kLeaf];
  _mm256_store_ps(d2, low);
  _mm256_store_ps(d2 + 8, high);
  if constexpr (std::is_same<Found, Nearest>::value) {
    const __m256 both = _mm256_min_ps(low, high);
    __m128 least = _mm_min_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    least = _mm_min_ps(least, _mm_movehl_ps(least, least));
    least = _mm_min_ss(least, _mm_movehdup_ps(least));
    const __m256 all = _mm256_broadcastss_ps(least);
    mask = mask_of(_mm256_cmp_ps(low, all, _CMP_EQ_OQ), _mm256_cmp_ps(high, all, _CMP_EQ_OQ));
    for (; mask; mask &= mask - 1) found.offer(d2[__builtin_ctz(mask)], leaf.index[__builtin_ctz(mask)]);
  } else {
    for (; mask; mask &= mask - 1) {
      const int i = __builtin_ctz(mask);
      if constexpr (std::is_same<Found, KSorted>::value) found.offer_avx2(d2[i], leaf.index[i]);
      else found.offer(d2[i], leaf.index[i]);
    }
  }
}

DLC_AVX2 inline __m128i least_key(__m256i keys) {
  __m128i least = _mm_min_epi32(_mm256_castsi256_si128(keys), _mm256_extracti128_si256(keys, 1));
  least = _mm_min_epi32(least, _mm_shuffle_epi32(least, 0x4e));
  return _mm_min_epi32(least, _mm_shuffle_epi32(least, 0xb1));
}

template <class Found>
DLC_AVX2 void traverse_avx2(const KdTree::Node* nodes, const KdTree::Leaf* leaves, int levels, const float q[3],
                            Found& found) {
  const Query8 query{_mm256_set1_ps(q[0]), _mm256_set1_ps(q[1]), _mm256_set1_ps(q[2])};
  Frame8 stack[kMaxLevels];
  Frame8 frame = open_node(nodes[0], query);
  for (int depth = 1;;) {
    const __m128i least = least_key(frame.keys);
    const int32_t key = _mm_cvtsi128_si32(least);
    if ((key & ~kLaneMask) > bits_of(found.bound)) {
      if (--depth == 0) return;
      frame = stack[depth];
      continue;
    }
    const __m256i chosen = _mm256_cmpeq_epi32(frame.keys, _mm256_broadcastd_epi32(least));
    frame.keys = _mm256_or_si256(frame.keys, _mm256_srli_epi32(chosen, 1));  // kVisited
    const int32_t child = frame.first + (key & kLaneMask);
    if (depth == levels) {
      scan_leaf(leaves[child], query, found);
    } else {
      stack[depth++] = frame;
      frame = open_node(nodes[child], query);
    }
  }
}
#endif

template <class Found>
void traverse(const KdTree::Node* nodes, const KdTree::Leaf* leaves, int levels, const float q[3], Found& found) {
  const float finite = (q[0] - q[0]) + (q[1] - q[1]) + (q[2] - q[2]);  // else NaN
  if (levels == 0 || !(found.bound >= 0) || finite != 0) return;
#if DLC_HAS_AVX2
  if (use_avx2()) return traverse_avx2(nodes, leaves, levels, q, found);
#endif
  traverse_scalar(nodes, leaves, levels, q, found);
}

}  // namespace search
}  // namespace dlc
