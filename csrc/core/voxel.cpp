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

struct Coded {
  uint64_t code;
  int64_t index;
};

}  // namespace

int64_t voxel_downsample(const float* points, int64_t n, double voxel_size, int64_t* inverse, float* means,
                         int num_threads) {
  if (!(voxel_size > 0) || !std::isfinite(voxel_size))
    throw std::invalid_argument("voxel_size must be positive and finite");
  if (n <= 0) return 0;
  float lo[3], hi[3];
  bounding_box(points, n, lo, hi);
  double origin[3], last_cell = 0;
  for (int a = 0; a < 3; ++a) {
    origin[a] = lo[a] - voxel_size * 0.5;
    last_cell = std::max(last_cell, std::floor((hi[a] - origin[a]) / voxel_size));
  }
  if (!(last_cell < (1 << kMortonBits)))
    throw std::invalid_argument("voxel_size is too small: the cloud spans more than 2^21 voxels");
  int bits = 0;
  while (last_cell >= (1 << bits)) ++bits;

  std::vector<Coded> items(static_cast<std::size_t>(n));
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t cell[3];
      for (int a = 0; a < 3; ++a)
        cell[a] = static_cast<uint64_t>(static_cast<int64_t>((points[3 * i + a] - origin[a]) / voxel_size));
      items[static_cast<std::size_t>(i)] = {morton_code(cell[0], cell[1], cell[2]), i};
    }
  });
  radix_sort(items, 0, 3 * bits, [](const Coded& item) { return item.code; });

  std::vector<int64_t> starts;  // of each voxel's run of items
  for (int64_t i = 0; i < n; ++i)
    if (i == 0 || items[static_cast<std::size_t>(i)].code != items[static_cast<std::size_t>(i - 1)].code)
      starts.push_back(i);
  const int64_t voxels = static_cast<int64_t>(starts.size());
  starts.push_back(n);
  parallel_for(voxels, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t first = starts[static_cast<std::size_t>(v)], past = starts[static_cast<std::size_t>(v + 1)];
      double sum[3] = {0, 0, 0};
      for (int64_t i = first; i < past; ++i) {
        const int64_t index = items[static_cast<std::size_t>(i)].index;
        for (int a = 0; a < 3; ++a) sum[a] += points[3 * index + a];
        inverse[index] = v;
      }
      for (int a = 0; a < 3; ++a) means[3 * v + a] = static_cast<float>(sum[a] / static_cast<double>(past - first));
    }
  });
  return voxels;
}

}  // namespace dlc
