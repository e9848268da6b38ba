// Order along the Morton (Z) curve: near in the order is near in space, so that searches stay in the cache.
#pragma once
#include <cstdint>
#include <vector>

namespace dlc {

struct Keyed {
  uint64_t key;
  int64_t value;
};

// Spreads the lowest 21 bits of v so that two zero bits follow each.
uint64_t spread3(uint64_t v);

inline uint64_t morton_code(uint64_t x, uint64_t y, uint64_t z) {
  return spread3(x) | spread3(y) << 1 | spread3(z) << 2;
}

// Stable radix sort by the lowest `bits` bits of the keys (the others must be zero).
void radix_sort(std::vector<Keyed>& items, int bits);

// order: (n) indices of the points (n, 3), sorted by their cell in a cubic grid of 2^bits_per_axis (at most 21) cells
// per axis over the bounding box; equal cells keep their order.
void morton_order(const float* points, int64_t n, int64_t* order, int num_threads, int bits_per_axis = 21);

}  // namespace dlc
