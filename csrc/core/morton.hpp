// Order along the Morton (Z) curve: near in the order is near in space, so that searches stay in the cache.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/morton_code.hpp"
#include "core/parallel.hpp"

namespace dlc {

// Stable sort by bits [low, high) of key(item).
template <class Item, class Key>
void radix_sort(std::vector<Item>& items, int low, int high, int num_threads, const Key& key) {
  constexpr int kDigit = 11;
  constexpr std::size_t kBuckets = 1 << kDigit;
  constexpr int64_t kBlocks = 16, kLeast = 1 << 15;
  const int64_t n = static_cast<int64_t>(items.size()), grain = std::max(kLeast, (n + kBlocks - 1) / kBlocks);
  std::vector<Item> other(items.size());
  std::vector<std::array<std::size_t, kBuckets>> places(static_cast<std::size_t>((n + grain - 1) / grain));
  for (int shift = low; shift < high; shift += kDigit) {
    const uint64_t mask = (UINT64_C(1) << std::min(kDigit, high - shift)) - 1;
    const auto digit = [&](const Item& item) { return (key(item) >> shift) & mask; };
    parallel_for(n, grain, num_threads, [&](int64_t begin, int64_t end) {
      auto& count = places[static_cast<std::size_t>(begin / grain)];
      count.fill(0);
      for (int64_t i = begin; i < end; ++i) ++count[digit(items[static_cast<std::size_t>(i)])];
    });
    std::size_t sum = 0;
    for (std::size_t bucket = 0; bucket < kBuckets; ++bucket)
      for (auto& place : places) sum += std::exchange(place[bucket], sum);
    parallel_for(n, grain, num_threads, [&](int64_t begin, int64_t end) {
      auto& place = places[static_cast<std::size_t>(begin / grain)];
      for (int64_t i = begin; i < end; ++i) {
        const Item& item = items[static_cast<std::size_t>(i)];
        other[place[digit(item)]++] = item;
      }
    });
    items.swap(other);
  }
}

// Least and greatest coordinates of points (n, 3); n > 0.
void bounding_box(const float* points, int64_t n, float lo[3], float hi[3]);

// order: (n) indices of the points (n, 3), sorted by their cell in a cubic grid of 2^21 cells per axis over the bounding
// box; equal cells keep their order.
void morton_order(const float* points, int64_t n, int64_t* order, int num_threads);

// The same with 2^10 cells per axis, enough for the caches and three times cheaper. n < 2^32.
std::vector<uint32_t> coarse_morton_order(const float* points, int64_t n, int num_threads);

constexpr int64_t kRun = 64;

// Calls body(near, index, m) for runs of m <= kRun points: near (m, 3) are copies, index (m) their places in `points`. If
// there are enough to gain by it, points that are near one another follow one another. The copies and whatever is
// written by index are far apart in memory: side by side, their cache misses overlap.
template <class Body>
void for_each_run(const float* points, int64_t n, int num_threads, const Body& body) {
  constexpr int64_t kGrain = 8 * kRun, kSortFrom = 4096;
  std::vector<uint32_t> order;
  if (n > kSortFrom && n <= INT64_C(0xffffffff)) order = coarse_morton_order(points, n, num_threads);
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    float near[3 * kRun];
    int64_t index[kRun];
    for (int64_t run = begin; run < end; run += kRun) {
      const int64_t m = std::min(kRun, end - run);
      for (int64_t i = 0; i < m; ++i) {
        index[i] = order.empty() ? run + i : static_cast<int64_t>(order[static_cast<std::size_t>(run + i)]);
        for (int a = 0; a < 3; ++a) near[3 * i + a] = points[3 * index[i] + a];
      }
      body(near, index, m);
    }
  });
}

}  // namespace dlc
