// What a run of near queries needs of a tree; internal to kdtree.cpp.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/search.hpp"

namespace dlc {
namespace search {

struct QueryBox {
  float lo[3], hi[3], reach = 0;  // reach: the greatest distance from the first query

  QueryBox(const float* queries, int64_t m) {
    std::fill(lo, lo + 3, std::numeric_limits<float>::infinity());
    std::fill(hi, hi + 3, -std::numeric_limits<float>::infinity());
    for (const float* q = queries; q != queries + 3 * m; q += 3) {
      for (int a = 0; a < 3; ++a) {
        lo[a] = std::min(lo[a], q[a]);
        hi[a] = std::max(hi[a], q[a]);
      }
      reach = std::max(reach, squared_distance(q, queries));
    }
    reach = std::sqrt(reach);
  }

  // No query of the box needs a point of a larger d2 if the first needed none beyond `first` (and all: beyond `limit`).
  // The margins are more than rounding and underflow can cost.
  float bound(float first, float limit) const {
    const float distance = std::sqrt(first) + reach;
    return std::min(limit, distance * distance * 1.00001f + 1e-36f);
  }
};

// The lowest nodes that can hold a point with d2 <= bound of any query in a box, under a root of their own. A box's lower
// bound is computed as a query's is, from coordinates that are nearer still, so that what is left out could not have won.
struct Patch {
  static constexpr int kLevels = 2;
  KdTree::Node nodes[1 + KdTree::kWidth];

  // False where there is nothing to gain: a tree as low as a patch, or more nodes than have room.
  bool cut(const KdTree::Node* tree, int levels, const QueryBox& box, float bound) {
    if (levels <= kLevels || !(bound < std::numeric_limits<float>::infinity())) return false;
    struct {
      int32_t node;
      int level;
    } stack[KdTree::kWidth * kMaxLevels];
    int waiting = 0, count = 0;
    stack[waiting++] = {0, 1};
    while (waiting) {
      const auto [at, level] = stack[--waiting];
      const KdTree::Node& node = tree[at];
      float d2[KdTree::kWidth];
      box_distances(node, box, d2);
      for (int c = 0; c < KdTree::kWidth; ++c) {
        if (!(d2[c] <= bound)) continue;
        if (level + 1 < levels) {
          stack[waiting++] = {node.first + c, level + 1};
        } else {
          if (count == KdTree::kWidth) return false;
          take(tree, node, c, count++);
        }
      }
    }
    for (; count < KdTree::kWidth; ++count)
      for (int a = 0; a < 3; ++a) {
        nodes[0].lo[a][count] = std::numeric_limits<float>::infinity();
        nodes[0].hi[a][count] = -std::numeric_limits<float>::infinity();
      }
    nodes[0].first = 1;
    return true;
  }

 private:
  static void box_distances(const KdTree::Node& node, const QueryBox& box, float d2[KdTree::kWidth]) {
    for (int c = 0; c < KdTree::kWidth; ++c) {
      float d[3];
      for (int a = 0; a < 3; ++a) d[a] = std::max(std::max(node.lo[a][c] - box.hi[a], box.lo[a] - node.hi[a][c]), 0.0f);
      d2[c] = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
    }
  }

  void take(const KdTree::Node* tree, const KdTree::Node& parent, int child, int lane) {
    for (int a = 0; a < 3; ++a) {
      nodes[0].lo[a][lane] = parent.lo[a][child];
      nodes[0].hi[a][lane] = parent.hi[a][child];
    }
    nodes[1 + lane] = tree[parent.first + child];
  }
};

// search(i, nodes, levels) answers query i and returns the largest d2 that it still wanted at its end, at most `limit`.
// Of every few queries the first goes through the whole tree, and the others through what its answer leaves of it.
template <class Search>
void in_patches(const KdTree::Node* nodes, int levels, const float* queries, int64_t m, float limit, const Search& search) {
  constexpr int64_t kRun = 16;
  Patch patch;
  for (int64_t begin = 0; begin < m; begin += kRun) {
    const int64_t end = std::min(m, begin + kRun);
    const float wanted = search(begin, nodes, levels);
    if (end - begin == 1) return;
    const QueryBox box(queries + 3 * begin, end - begin);
    const bool fits = patch.cut(nodes, levels, box, box.bound(wanted, limit));
    for (int64_t i = begin + 1; i < end; ++i) search(i, fits ? patch.nodes : nodes, fits ? Patch::kLevels : levels);
  }
}

}  // namespace search
}  // namespace dlc
