#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "core/kdtree.hpp"
#include "core/parallel.hpp"
#include "core/partition.hpp"

namespace dlc {
namespace {

constexpr int64_t kTasks = 64;  // parts that are enough to share among threads
constexpr int64_t kGrain = 2048;  // points of a part, at least: so many that none of those is a leaf
constexpr int64_t kCopied = 1 << 15;  // points at a time
constexpr int64_t kSample = 256;  // points that the axis of a split is chosen by, at most
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Box {
  float lo[3] = {kInfinity, kInfinity, kInfinity};
  float hi[3] = {-kInfinity, -kInfinity, -kInfinity};

  Box(const Item* points, int64_t n, int64_t step = 1) {
    for (int64_t i = 0; i < n; i += step)
      for (int a = 0; a < 3; ++a) {
        lo[a] = std::min(lo[a], points[i].x[a]);
        hi[a] = std::max(hi[a], points[i].x[a]);
      }
  }
};

// Of a sample's box: only speed depends on it.
int widest_axis(const Item* points, int64_t n) {
  const Box box(points, n, n / kSample + 1);
  int axis = 0;
  for (int a = 1; a < 3; ++a)
    if (box.hi[a] - box.lo[a] > box.hi[axis] - box.lo[axis]) axis = a;
  return axis;
}

}  // namespace

// All leaves lie at one depth and hold kLeaf points each, but for the last. A node over L leaves whose children can hold
// up to C leaves has ceil(L / C) children, so that nodes are sparse near the root and full near the leaves.
struct KdTree::Build {
  struct Range {  // of leaves, below one node
    int64_t begin, end;
    int64_t fan;  // children
    int64_t size() const { return end - begin; }
    int64_t boundary(int64_t child) const { return begin + size() * child / fan; }
  };

  KdTree& tree;
  std::unique_ptr<Item[]> items[2];
  std::vector<std::vector<Range>> levels{};
  std::vector<int64_t> offsets{};  // of each level in tree.nodes_

  int64_t first_item(int64_t leaf) const { return std::min(leaf * kLeaf, tree.n_); }
  bool is_last(int depth) const { return depth + 1 == tree.levels_; }
  Node& node(int depth, int64_t i) { return tree.nodes_[static_cast<size_t>(offsets[static_cast<size_t>(depth)] + i)]; }
  Range& range(int depth, int64_t i) { return levels[static_cast<size_t>(depth)][static_cast<size_t>(i)]; }
  int64_t first_child(int depth, int64_t i) {  // in the next level, or among the leaves
    return node(depth, i).first - (is_last(depth) ? 0 : offsets[static_cast<size_t>(depth) + 1]);
  }

  void lay_out() {
    const int64_t leaves = (tree.n_ + kLeaf - 1) / kLeaf;
    int64_t capacity = 1;  // leaves below a child of the present level, at most
    for (tree.levels_ = 1; capacity * kWidth < leaves; ++tree.levels_) capacity *= kWidth;
    tree.leaves_.reset(new Leaf[static_cast<size_t>(leaves)]);
    levels.resize(static_cast<size_t>(tree.levels_));
    levels[0].push_back({0, leaves, (leaves + capacity - 1) / capacity});
    for (int depth = 0; depth < tree.levels_; ++depth) {
      const auto& level = levels[static_cast<size_t>(depth)];
      offsets.push_back(static_cast<int64_t>(tree.nodes_.size()));
      tree.nodes_.resize(tree.nodes_.size() + level.size(), empty());
      capacity /= kWidth;
      for (size_t i = 0; i < level.size(); ++i) {
        const Range& range = level[i];
        Node& at = node(depth, static_cast<int64_t>(i));
        if (is_last(depth)) {
          at.first = static_cast<int32_t>(range.begin);
          continue;
        }
        auto& next = levels[static_cast<size_t>(depth) + 1];
        at.first = static_cast<int32_t>(tree.nodes_.size() + next.size());
        for (int64_t c = 0; c < range.fan; ++c) {
          const int64_t begin = range.boundary(c), end = range.boundary(c + 1);
          next.push_back({begin, end, (end - begin + capacity - 1) / capacity});
        }
      }
    }
  }

  struct Part {  // children [a, b) of node i of a level, and which of the two buffers holds their points
    int depth;
    int64_t i, a, b;
    int buffer;
  };

  Part whole(int depth, int64_t i, int buffer) { return {depth, i, 0, range(depth, i).fan, buffer}; }

  // Partitions a part's points along the widest axis into its two halves, in the other buffer. False when it was a single
  // leaf, which is then filled.
  bool halve(Part part, Part halves[2]) {
    while (part.b - part.a == 1) {
      if (is_last(part.depth)) {
        const int64_t leaf = range(part.depth, part.i).begin + part.a;
        fill_leaf(node(part.depth, part.i), part.a, leaf, items[part.buffer].get());
        return false;
      }
      part = whole(part.depth + 1, first_child(part.depth, part.i) + part.a, part.buffer);
    }
    const Range& all = range(part.depth, part.i);
    const int64_t middle = (part.a + part.b) / 2;
    const int64_t begin = first_item(all.boundary(part.a)), end = first_item(all.boundary(part.b));
    Item* const from = items[part.buffer].get() + begin;
    Item* const to = items[1 - part.buffer].get() + begin;
    partition(from, to, end - begin, first_item(all.boundary(middle)) - begin, widest_axis(from, end - begin));
    halves[0] = {part.depth, part.i, part.a, middle, 1 - part.buffer};
    halves[1] = {part.depth, part.i, middle, part.b, 1 - part.buffer};
    return true;
  }

  void finish(const Part& part) {
    Part halves[2];
    if (!halve(part, halves)) return;
    finish(halves[0]);
    finish(halves[1]);
  }

  void fill_leaf(Node& parent, int64_t child, int64_t l, const Item* points) {
    Leaf& leaf = tree.leaves_[static_cast<size_t>(l)];
    const int64_t begin = first_item(l), count = first_item(l + 1) - begin;
    for (int64_t i = 0; i < kLeaf; ++i) {
      const bool present = i < count;
      for (int a = 0; a < 3; ++a) leaf.x[a][i] = present ? points[begin + i].x[a] : kInfinity;
      leaf.index[i] = present ? points[begin + i].index : std::numeric_limits<int32_t>::max();
    }
    const Box box(points + begin, count);
    for (int a = 0; a < 3; ++a) {
      parent.lo[a][child] = box.lo[a];
      parent.hi[a][child] = box.hi[a];
    }
  }

  // The boxes of a node's children, from those of theirs.
  void enclose(int depth, int64_t i) {
    Node& parent = node(depth, i);
    for (int64_t c = 0; c < range(depth, i).fan; ++c) {
      const Node& child = node(depth + 1, first_child(depth, i) + c);
      for (int a = 0; a < 3; ++a) {
        parent.lo[a][c] = *std::min_element(child.lo[a], child.lo[a] + kWidth);
        parent.hi[a][c] = *std::max_element(child.hi[a], child.hi[a] + kWidth);
      }
    }
  }

  static Node empty() {
    Node node{};
    for (int a = 0; a < 3; ++a) {
      std::fill(node.lo[a], node.lo[a] + kWidth, kInfinity);
      std::fill(node.hi[a], node.hi[a] + kWidth, -kInfinity);
    }
    return node;
  }

  void run(int num_threads) {
    lay_out();
    std::vector<Part> parts{whole(0, 0, 0)}, halves;
    const int64_t wanted = std::min(kTasks, tree.n_ / kGrain);
    for (auto count = static_cast<int64_t>(parts.size()); count < wanted; count = static_cast<int64_t>(parts.size())) {
      halves.resize(2 * parts.size());
      parallel_for(count, 1, num_threads, [&](int64_t begin, int64_t end) {
        for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) halve(parts[i], &halves[2 * i]);
      });
      parts.swap(halves);
    }
    parallel_for(static_cast<int64_t>(parts.size()), 1, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) finish(parts[static_cast<size_t>(i)]);
    });
    for (int depth = tree.levels_ - 2; depth >= 0; --depth) {
      const auto count = static_cast<int64_t>(levels[static_cast<size_t>(depth)].size());
      parallel_for(count, std::max<int64_t>(1, count / kTasks), num_threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) enclose(depth, i);
      });
    }
  }
};

KdTree::KdTree(const float* points, int64_t n, int num_threads) : n_(std::max<int64_t>(n, 0)) {
  if (n_ >= std::numeric_limits<int32_t>::max()) throw std::invalid_argument("a KdTree holds fewer than 2^31 - 1 points");
  if (n_ == 0) return;
  const auto size = static_cast<size_t>(n_);
  points_.reset(new float[3 * size]);
  Build build{*this, {std::unique_ptr<Item[]>(new Item[size]), std::unique_ptr<Item[]>(new Item[size])}};
  parallel_for(n_, kCopied, num_threads, [&](int64_t begin, int64_t end) {
    std::copy(points + 3 * begin, points + 3 * end, points_.get() + 3 * begin);
    for (int64_t i = begin; i < end; ++i)
      build.items[0][static_cast<size_t>(i)] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]}, static_cast<int32_t>(i)};
  });
  build.run(num_threads);
}

}  // namespace dlc
