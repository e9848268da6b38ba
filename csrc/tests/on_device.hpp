// What the tests of CUDA kernels on the host need: a call, and a tree with the memory that it stands in.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/device.hpp"

constexpr dlc::cuda::Call kCall{0, nullptr};

struct SortMemory {
  explicit SortMemory(int64_t n) : bytes(dlc::cuda::sort_bytes(n)) {}
  dlc::cuda::Workspace workspace() { return {bytes.data(), bytes.size()}; }
  std::vector<char> bytes;
};

class DeviceTree {
 public:
  explicit DeviceTree(const std::vector<float>& points)
      : n_(static_cast<int64_t>(points.size() / 3)), memory_(dlc::cuda::tree_bytes(n_) / 16 + 1) {
    SortMemory sort(n_);
    dlc::cuda::build_tree(kCall, points.data(), n_, memory_.data(), sort.workspace());
  }
  dlc::cuda::TreeMemory tree() const { return {memory_.data(), n_}; }

 private:
  struct alignas(16) Line {
    char bytes[16];
  };
  int64_t n_;
  std::vector<Line> memory_;
};

inline std::vector<int32_t> device_order(const std::vector<float>& points, int bits) {
  const int64_t n = static_cast<int64_t>(points.size() / 3);
  SortMemory sort(n);
  std::vector<int32_t> order(static_cast<std::size_t>(n), -1);
  dlc::cuda::morton_order(kCall, points.data(), n, bits, order.data(), sort.workspace());
  return order;
}
