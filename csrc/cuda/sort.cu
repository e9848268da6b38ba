#include "cuda/sort.cuh"

#include <cub/cub.cuh>

namespace dlc {
namespace cuda {
namespace {

constexpr std::size_t kAlign = 256;
std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

std::size_t scratch_bytes(int64_t n) {
  std::size_t bytes = 0;
  check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, static_cast<const uint64_t*>(nullptr),
                                        static_cast<uint64_t*>(nullptr), static_cast<const int32_t*>(nullptr),
                                        static_cast<int32_t*>(nullptr), n, 0, 64, static_cast<cudaStream_t>(nullptr)),
        "sizing a sort");
  return bytes;
}

}  // namespace

std::size_t sort_bytes(int64_t n) {
  const std::size_t count = static_cast<std::size_t>(n);
  return 2 * aligned(8 * count) + aligned(4 * count) + aligned(24) + aligned(scratch_bytes(n)) + kAlign;
}

SortBuffers cut(Workspace workspace, int64_t n) {
  if (workspace.bytes < sort_bytes(n)) throw std::invalid_argument("the workspace is too small");
  const std::size_t count = static_cast<std::size_t>(n);
  char* at = reinterpret_cast<char*>(aligned(reinterpret_cast<std::uintptr_t>(workspace.memory)));
  const auto take = [&at](std::size_t bytes) {
    char* const taken = at;
    at += aligned(bytes);
    return static_cast<void*>(taken);
  };
  SortBuffers buffers{};
  buffers.keys = static_cast<uint64_t*>(take(8 * count));
  buffers.sorted_keys = static_cast<uint64_t*>(take(8 * count));
  buffers.values = static_cast<int32_t*>(take(4 * count));
  buffers.bounds = static_cast<int32_t*>(take(24));
  buffers.scratch_bytes = scratch_bytes(n);
  buffers.scratch = at;
  return buffers;
}

void sort_pairs(Call call, const SortBuffers& buffers, int32_t* order, int64_t n, int bits) {
  std::size_t bytes = buffers.scratch_bytes;
  check(cub::DeviceRadixSort::SortPairs(buffers.scratch, bytes, static_cast<const uint64_t*>(buffers.keys),
                                        buffers.sorted_keys, static_cast<const int32_t*>(buffers.values), order, n, 0,
                                        bits, static_cast<cudaStream_t>(call.stream)),
        "sorting");
}

}  // namespace cuda
}  // namespace dlc
