// The loop of what is computed for each point from its nearest neighbours.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/kdtree.hpp"
#include "core/morton.hpp"

namespace dlc {

struct Neighbours {  // of one point, nearest first
  const int32_t* index;
  const float* d2;
  int count;
};

// Calls body(at, point, neighbours) for each of points (n, 3) with its k nearest in the tree, nearer than max_distance,
// itself included if it is in the tree: `at` is its place in `points`, `point` a copy of it. As for_each_run, which is
// below it, in an order that keeps the caches busy.
template <class Body>
void for_each_neighbourhood(const KdTree& tree, const float* points, int64_t n, int k, float max_distance,
                            int num_threads, const Body& body) {
  const int room = static_cast<int>(std::clamp<int64_t>(k, 0, tree.size()));
  const float limit = squared_limit(max_distance);
  for_each_run(points, n, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    int count[kRun];
    index.resize(static_cast<std::size_t>(run * room));
    d2.resize(static_cast<std::size_t>(run * room));
    tree.knn_of_each(near, run, room, limit, index.data(), d2.data(), count);
    for (int64_t i = 0; i < run; ++i)
      body(at[i], near + 3 * i, Neighbours{index.data() + i * room, d2.data() + i * room, count[i]});
  });
}

}  // namespace dlc
