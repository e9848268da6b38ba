#include "core/morton.hpp"

#include <algorithm>

namespace dlc {
namespace {

constexpr int64_t kGrain = 1 << 14;

MortonGrid grid_over(const float* points, int64_t n, int bits) {
  float lo[3], hi[3];
  bounding_box(points, n, lo, hi);
  return MortonGrid(lo, hi, bits);
}

struct Coded {
  uint64_t code;
  int64_t index;
};

}  // namespace

void bounding_box(const float* points, int64_t n, float lo[3], float hi[3]) {
  float least[3] = {points[0], points[1], points[2]}, most[3] = {points[0], points[1], points[2]};
  for (int64_t i = 1; i < n; ++i)
    for (int a = 0; a < 3; ++a) {
      least[a] = std::min(least[a], points[3 * i + a]);
      most[a] = std::max(most[a], points[3 * i + a]);
    }
  std::copy(least, least + 3, lo);
  std::copy(most, most + 3, hi);
}

void morton_order(const float* points, int64_t n, int64_t* order, int num_threads) {
  if (n <= 0) return;
  const MortonGrid grid = grid_over(points, n, kMortonBits);
  std::vector<Coded> items(static_cast<std::size_t>(n));
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) items[static_cast<std::size_t>(i)] = {grid.code(points + 3 * i), i};
  });
  radix_sort(items, 0, 3 * kMortonBits, num_threads, [](const Coded& item) { return item.code; });
  for (int64_t i = 0; i < n; ++i) order[i] = items[static_cast<std::size_t>(i)].index;
}

std::vector<uint32_t> coarse_morton_order(const float* points, int64_t n, int num_threads) {
  constexpr int kBits = 10;
  if (n <= 0) return {};
  const MortonGrid grid = grid_over(points, n, kBits);
  std::vector<uint64_t> items(static_cast<std::size_t>(n));  // code above, index below
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      items[static_cast<std::size_t>(i)] = grid.code(points + 3 * i) << 32 | static_cast<uint64_t>(i);
  });
  radix_sort(items, 32, 32 + 3 * kBits, num_threads, [](uint64_t item) { return item; });
  return std::vector<uint32_t>(items.begin(), items.end());
}

}  // namespace dlc
