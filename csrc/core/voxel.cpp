#include "core/voxel.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "core/morton.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int64_t kGrain = 1 << 13;

// A point's place and the code of its voxel: side by side in one word where both fit, which halves the memory to sort.
struct Packed {
  int index_bits;
  using Item = uint64_t;
  Item item(uint64_t code, int64_t index) const { return code << index_bits | static_cast<uint64_t>(index); }
  uint64_t code(Item item) const { return item >> index_bits; }
  int64_t index(Item item) const { return static_cast<int64_t>(item & ((UINT64_C(1) << index_bits) - 1)); }
};

struct Apart {
  struct Item {
    uint64_t code;
    int64_t index;
  };
  Item item(uint64_t code, int64_t index) const { return {code, index}; }
  uint64_t code(const Item& item) const { return item.code; }
  int64_t index(const Item& item) const { return item.index; }
};

int bits_for(int64_t values) {  // to number them from 0
  int bits = 0;
  while (bits < 63 && values > INT64_C(1) << bits) ++bits;
  return bits;
}

template <class Layout>
int64_t group(const float* points, int64_t n, const VoxelGrid& grid, int code_bits, const Layout& layout, int64_t* inverse,
              float* means, int num_threads) {
  using Item = typename Layout::Item;
  std::vector<Item> items(static_cast<std::size_t>(n));
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      items[static_cast<std::size_t>(i)] = layout.item(grid.code(points + 3 * i), i);
  });
  radix_sort(items, 0, code_bits, num_threads, [&](const Item& item) { return layout.code(item); });

  std::vector<int64_t> starts;  // of each voxel's run of items
  for (int64_t i = 0; i < n; ++i)
    if (i == 0 || layout.code(items[static_cast<std::size_t>(i)]) != layout.code(items[static_cast<std::size_t>(i - 1)]))
      starts.push_back(i);
  const int64_t voxels = static_cast<int64_t>(starts.size());
  starts.push_back(n);
  parallel_for(voxels, std::max<int64_t>(1, kGrain * voxels / n), num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t first = starts[static_cast<std::size_t>(v)], past = starts[static_cast<std::size_t>(v + 1)];
      double sum[3] = {0, 0, 0};
      for (int64_t i = first; i < past; ++i) {
        const int64_t index = layout.index(items[static_cast<std::size_t>(i)]);
        for (int a = 0; a < 3; ++a) sum[a] += points[3 * index + a];
        inverse[index] = v;
      }
      for (int a = 0; a < 3; ++a) means[3 * v + a] = static_cast<float>(sum[a] / static_cast<double>(past - first));
    }
  });
  return voxels;
}

}  // namespace

int64_t voxel_downsample(const float* points, int64_t n, double voxel_size, int64_t* inverse, float* means,
                         int num_threads) {
  if (!(voxel_size > 0) || !std::isfinite(voxel_size))
    throw std::invalid_argument("voxel_size must be positive and finite");
  if (n <= 0) return 0;
  float lo[3], hi[3];
  bounding_box(points, n, lo, hi);
  VoxelGrid grid{{}, voxel_size};
  double last_cell = 0;
  for (int a = 0; a < 3; ++a) {
    grid.origin[a] = lo[a] - voxel_size * 0.5;
    last_cell = std::max(last_cell, std::floor((hi[a] - grid.origin[a]) / voxel_size));
  }
  if (!(last_cell < (1 << kMortonBits)))
    throw std::invalid_argument("voxel_size is too small: the cloud spans more than 2^21 voxels");
  const int code_bits = 3 * bits_for(static_cast<int64_t>(last_cell) + 1), index_bits = bits_for(n);
  if (code_bits + index_bits <= 64)
    return group(points, n, grid, code_bits, Packed{index_bits}, inverse, means, num_threads);
  return group(points, n, grid, code_bits, Apart{}, inverse, means, num_threads);
}

}  // namespace dlc
