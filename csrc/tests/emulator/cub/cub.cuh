// The part of CUB that the kernels use, on the host.
#pragma once
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* memory, std::size_t& bytes, const Key* keys, Key* keys_out, const Value* values,
                               Value* values_out, int64_t n, int begin_bit, int end_bit, cudaStream_t) {
    if (!memory) return bytes = 1, cudaSuccess;
    const int width = end_bit - begin_bit;
    const Key mask = width >= 64 ? ~Key{0} : ((Key{1} << width) - 1);
    std::vector<int64_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return (keys[a] >> begin_bit & mask) < (keys[b] >> begin_bit & mask);
    });
    for (int64_t i = 0; i < n; ++i) keys_out[i] = keys[order[i]], values_out[i] = values[order[i]];
    return cudaSuccess;
  }
};

}  // namespace cub
