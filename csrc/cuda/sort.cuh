// Sorting keys with values: the only door to CUB, which takes long to compile.
#pragma once
#include "cuda/launch.cuh"

namespace dlc {
namespace cuda {

// sort_bytes(n) of memory, cut up.
struct SortBuffers {
  uint64_t *keys, *sorted_keys;
  int32_t* values;
  int32_t* bounds;  // 6: the least and the greatest coordinates, see ordered_bits
  void* scratch;
  std::size_t scratch_bytes;
};
SortBuffers cut(Workspace workspace, int64_t n);

// Stable sort of buffers.keys (bits [0, bits)) with buffers.values into sorted_keys and `order`.
void sort_pairs(Call call, const SortBuffers& buffers, int32_t* order, int64_t n, int bits);

}  // namespace cuda
}  // namespace dlc
