#include "core/morton.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int kDigit = 11;
constexpr int64_t kGrain = 1 << 14;

}  // namespace

uint64_t spread3(uint64_t v) {
  v &= 0x1fffff;
  v = (v | v << 32) & 0x1f00000000ffffull;
  v = (v | v << 16) & 0x1f0000ff0000ffull;
  v = (v | v << 8) & 0x100f00f00f00f00full;
  v = (v | v << 4) & 0x10c30c30c30c30c3ull;
  v = (v | v << 2) & 0x1249249249249249ull;
  return v;
}

void radix_sort(std::vector<Keyed>& items, int bits) {
  std::vector<Keyed> other(items.size());
  for (int shift = 0; shift < bits; shift += kDigit) {
    std::array<std::size_t, 1 << kDigit> place{};
    const auto digit = [shift](const Keyed& item) { return (item.key >> shift) & ((1u << kDigit) - 1); };
    for (const Keyed& item : items) ++place[digit(item)];
    std::size_t sum = 0;
    for (std::size_t& p : place) {
      const std::size_t count = p;
      p = sum;
      sum += count;
    }
    for (const Keyed& item : items) other[place[digit(item)]++] = item;
    items.swap(other);
  }
}

void morton_order(const float* points, int64_t n, int64_t* order, int num_threads, int bits_per_axis) {
  if (n <= 0) return;
  double lo[3], extent = 0;
  for (int a = 0; a < 3; ++a) {
    float least = std::numeric_limits<float>::max(), most = std::numeric_limits<float>::lowest();
    for (int64_t i = 0; i < n; ++i) {
      least = std::min(least, points[3 * i + a]);
      most = std::max(most, points[3 * i + a]);
    }
    lo[a] = least;
    extent = std::max(extent, static_cast<double>(most) - least);
  }
  const double last_cell = static_cast<double>((int64_t{1} << bits_per_axis) - 1);
  const double scale = extent > 0 ? last_cell / extent : 0;
  std::vector<Keyed> items(static_cast<std::size_t>(n));
  parallel_for(n, kGrain, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t cell[3];
      for (int a = 0; a < 3; ++a) {
        const double at = (points[3 * i + a] - lo[a]) * scale;
        cell[a] = at > 0 ? static_cast<uint64_t>(std::min(at, last_cell)) : 0;  // not a number: 0
      }
      items[static_cast<std::size_t>(i)] = {morton_code(cell[0], cell[1], cell[2]), i};
    }
  });
  radix_sort(items, 3 * bits_per_axis);
  for (int64_t i = 0; i < n; ++i) order[i] = items[static_cast<std::size_t>(i)].value;
}

}  // namespace dlc
