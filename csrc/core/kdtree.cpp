#include "core/kdtree.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "core/parallel.hpp"
#include "core/search.hpp"
#include "core/search_patch.hpp"

namespace dlc {
namespace {

constexpr int kLeaf = KdTree::kLeaf;
constexpr int kWidth = KdTree::kWidth;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Item {
  float x[3];
  int32_t index;
};

struct Box {
  float lo[3] = {kInfinity, kInfinity, kInfinity};
  float hi[3] = {-kInfinity, -kInfinity, -kInfinity};

  Box(const Item* begin, const Item* end) {
    for (const Item* item = begin; item != end; ++item)
      for (int a = 0; a < 3; ++a) {
        lo[a] = std::min(lo[a], item->x[a]);
        hi[a] = std::max(hi[a], item->x[a]);
      }
  }

  int widest_axis() const {
    int axis = 0;
    for (int a = 1; a < 3; ++a)
      if (hi[a] - lo[a] > hi[axis] - lo[axis]) axis = a;
    return axis;
  }
};

// (coordinate, index) as one integer in lexicographic order; a total order even if a NaN slips through.
uint64_t rank(const Item& item, int axis) {
  const int32_t bits = search::bits_of(item.x[axis]);
  const uint32_t ordered = static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(item.index);
}

// std::nth_element by rank, with a partition free of branches that depend on the data (twice as fast).
void select(Item* begin, Item* nth, Item* end, int axis) {
  for (int rounds = 0; end - begin > 64 && rounds < 40; ++rounds) {
    const int64_t step = (end - begin) / 8;
    uint64_t sample[7];
    for (int i = 0; i < 7; ++i) sample[i] = rank(begin[(i + 1) * step], axis);
    std::sort(sample, sample + 7);
    const uint64_t pivot = sample[std::clamp<int64_t>((nth - begin) * 8 / (end - begin), 1, 6)];
    Item* less = begin;  // [begin, less) are below the pivot
    for (Item* at = begin; at != end; ++at) {
      const Item item = *at;
      *at = *less;
      *less = item;
      less += rank(item, axis) < pivot;
    }
    if (nth < less) end = less;
    else begin = less;
  }
  std::nth_element(begin, nth, end, [axis](const Item& l, const Item& r) { return rank(l, axis) < rank(r, axis); });
}

}  // namespace

// All leaves lie at one depth and hold kLeaf points each, but for the last. A node over L leaves whose children can hold
// up to C leaves has ceil(L / C) children, so that nodes are sparse near the root and full near the leaves.
struct KdTree::Build {
  struct Range {
    int64_t begin, end;  // leaves
    int64_t size() const { return end - begin; }
  };

  KdTree& tree;
  std::vector<Item> items;

  // Partitions the points of leaves among children [a, b) of the node by halving along the widest axis.
  void split(const Range& node, int64_t fan, int64_t a, int64_t b) {
    if (b - a < 2) return;
    const int64_t middle = (a + b) / 2;
    Item* const begin = items.data() + first_item(boundary(node, fan, a));
    Item* const end = items.data() + first_item(boundary(node, fan, b));
    const int axis = Box(begin, end).widest_axis();
    select(begin, items.data() + first_item(boundary(node, fan, middle)), end, axis);
    split(node, fan, a, middle);
    split(node, fan, middle, b);
  }

  static int64_t boundary(const Range& node, int64_t fan, int64_t child) {
    return node.begin + node.size() * child / fan;
  }

  int64_t first_item(int64_t leaf) const { return std::min(leaf * kLeaf, tree.n_); }

  void fill_node(Node& node, const Range& range, int64_t fan) {
    split(range, fan, 0, fan);
    for (int64_t c = 0; c < kWidth; ++c) {
      const bool present = c < fan;
      const Box box(items.data() + (present ? first_item(boundary(range, fan, c)) : 0),
                    items.data() + (present ? first_item(boundary(range, fan, c + 1)) : 0));
      for (int a = 0; a < 3; ++a) {
        node.lo[a][c] = box.lo[a];
        node.hi[a][c] = box.hi[a];
      }
    }
  }

  void fill_leaf(int64_t l) {
    Leaf& leaf = tree.leaves_[static_cast<size_t>(l)];
    Item* const begin = items.data() + first_item(l);
    Item* const end = items.data() + first_item(l + 1);
    for (int i = 0; i < kLeaf; ++i) {
      const bool present = begin + i < end;
      for (int a = 0; a < 3; ++a) leaf.x[a][i] = present ? begin[i].x[a] : kInfinity;
      leaf.index[i] = present ? begin[i].index : std::numeric_limits<int32_t>::max();
    }
  }

  void run(int num_threads) {
    const int64_t leaves = (tree.n_ + kLeaf - 1) / kLeaf;
    int64_t capacity = kWidth;  // leaves below a node of the present level, at most
    for (tree.levels_ = 1; capacity < leaves; ++tree.levels_) capacity *= kWidth;
    tree.leaves_.resize(static_cast<size_t>(leaves));
    std::vector<Range> level{{0, leaves}};
    int64_t written = 0;
    for (int depth = 0; depth < tree.levels_; ++depth) {
      capacity /= kWidth;
      const bool last = depth + 1 == tree.levels_;
      const int64_t count = static_cast<int64_t>(level.size());
      tree.nodes_.resize(static_cast<size_t>(written + count));
      std::vector<Range> next;
      for (int64_t i = 0; i < count; ++i) {
        const Range& range = level[static_cast<size_t>(i)];
        tree.nodes_[static_cast<size_t>(written + i)].first = static_cast<int32_t>(
            last ? range.begin : written + count + static_cast<int64_t>(next.size()));
        const int64_t fan = (range.size() + capacity - 1) / capacity;
        for (int64_t c = 0; c < fan && !last; ++c) next.push_back({boundary(range, fan, c), boundary(range, fan, c + 1)});
      }
      parallel_for(count, std::max<int64_t>(1, count / 64), num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const Range& range = level[static_cast<size_t>(i)];
          fill_node(tree.nodes_[static_cast<size_t>(written + i)], range, (range.size() + capacity - 1) / capacity);
          for (int64_t l = range.begin; l < range.end && last; ++l) fill_leaf(l);
        }
      });
      written += count;
      level.swap(next);
    }
  }
};

KdTree::KdTree(const float* points, int64_t n, int num_threads) : n_(std::max<int64_t>(n, 0)) {
  if (n_ >= std::numeric_limits<int32_t>::max()) throw std::invalid_argument("a KdTree holds fewer than 2^31 - 1 points");
  if (n_ == 0) return;
  points_.assign(points, points + 3 * n_);
  Build build{*this, std::vector<Item>(static_cast<size_t>(n_))};
  for (int64_t i = 0; i < n_; ++i)
    build.items[static_cast<size_t>(i)] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]}, static_cast<int32_t>(i)};
  build.run(num_threads);
}

namespace {

// The largest float below a strict limit: d2 < limit where d2 <= below(limit). Negative: nothing qualifies.
float below(float limit) {
  if (!(limit > 0)) return -1;
  const int32_t bits = search::bits_of(limit) - 1;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace

bool KdTree::nearest(const float q[3], float max_d2, int32_t& index, float& d2) const {
  return nearest(q, max_d2, -1, index, d2);
}

bool KdTree::nearest(const float q[3], float max_d2, int32_t hint, int32_t& index, float& d2) const {
  search::Nearest found{below(max_d2)};
  if (hint >= 0 && hint < n_) found.offer(search::squared_distance(q, point(hint)), hint);
  search::traverse(nodes_.data(), leaves_.data(), levels_, q, found);
  if (!found.any()) return false;
  index = found.index;
  d2 = found.bound;
  return true;
}

void KdTree::nearest_of_each(const float* queries, int64_t m, float max_d2, int32_t* index, float* d2) const {
  const float limit = below(max_d2);
  search::in_patches(nodes_.data(), levels_, queries, m, limit, [&](int64_t i, const Node* nodes, int levels) {
    search::Nearest found{limit};
    search::traverse(nodes, leaves_.data(), levels, queries + 3 * i, found);
    index[i] = found.any() ? found.index : -1;
    d2[i] = found.any() ? found.bound : kInfinity;
    return found.bound;
  });
}

// `bound` is inclusive, unlike max_d2; wanted: the largest d2 that could still have entered the answer.
int KdTree::knn_in(const Node* nodes, int levels, const float q[3], int k, float bound, int32_t* index, float* d2,
                   float& wanted) const {
  const auto write = [&](const uint64_t* keys, int count) {
    for (int i = 0; i < count; ++i) {
      d2[i] = search::key_distance(keys[i]);
      index[i] = search::key_index(keys[i]);
    }
    return count;
  };
  if (k <= search::KSorted::kMax) {
    search::KSorted found(bound, k);
    search::traverse(nodes, leaves_.data(), levels, q, found);
    wanted = found.bound;
    return write(found.keys, found.count);
  }
  search::KHeap found(bound, k);
  search::traverse(nodes, leaves_.data(), levels, q, found);
  wanted = found.bound;
  std::sort_heap(found.keys.begin(), found.keys.end());
  return write(found.keys.data(), static_cast<int>(found.keys.size()));
}

int KdTree::knn(const float q[3], int k, float max_d2, int32_t* index, float* d2) const {
  int count = 0;
  knn_of_each(q, 1, k, max_d2, index, d2, &count);
  return count;
}

void KdTree::knn_of_each(const float* queries, int64_t m, int k, float max_d2, int32_t* index, float* d2,
                         int* count) const {
  const int room = static_cast<int>(std::min<int64_t>(k, n_));
  const float limit = below(max_d2);
  if (room <= 0) {
    std::fill(count, count + m, 0);
    return;
  }
  search::in_patches(nodes_.data(), levels_, queries, m, limit, [&](int64_t i, const Node* nodes, int levels) {
    float wanted = limit;
    count[i] = knn_in(nodes, levels, queries + 3 * i, room, limit, index + i * k, d2 + i * k, wanted);
    return wanted;
  });
}

int64_t KdTree::radius(const float q[3], float r2, std::vector<std::pair<float, int32_t>>& out) const {
  out.clear();
  search::Ball found{below(r2), out};
  search::traverse(nodes_.data(), leaves_.data(), levels_, q, found);
  std::sort(out.begin(), out.end());
  return static_cast<int64_t>(out.size());
}

int64_t KdTree::count(const float q[3], float r2) const {
  search::Counter found{below(r2)};
  search::traverse(nodes_.data(), leaves_.data(), levels_, q, found);
  return found.count;
}

float squared_limit(float max_distance) {
  if (!(max_distance > 0)) return 0;
  float limit = max_distance * max_distance;
  while (limit > 0 && std::sqrt(std::nextafter(limit, 0.0f)) >= max_distance) limit = std::nextafter(limit, 0.0f);
  while (std::sqrt(limit) < max_distance) limit = std::nextafter(limit, kInfinity);
  return limit;
}

}  // namespace dlc
