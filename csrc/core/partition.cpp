#include "core/partition.hpp"

#include <algorithm>
#include <limits>

#include "core/search.hpp"

namespace dlc {
namespace {

constexpr int kSmall = 64;   // at most so many are counted, without a branch; also the size of a sample
constexpr int kLanes = 16;   // counted side by side
constexpr int kMargin = 4;   // ranks of the sample about the wanted one: one standard deviation of the median's
constexpr int kRounds = 40;  // before the library's selection takes over, which has a bound
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// (coordinate, index) as one integer in lexicographic order; a total order even if a NaN slips through.
uint64_t rank(const Item& item, int axis) {
  const int32_t bits = search::bits_of(item.x[axis]);
  const uint32_t ordered = static_cast<uint32_t>(bits) ^ (static_cast<uint32_t>(bits >> 31) | 0x80000000u);
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(item.index);
}

void partition_by_rank(const Item* from, Item* to, int64_t n, int64_t k, int axis) {
  std::copy(from, from + n, to);
  std::nth_element(to, to + k, to + n, [axis](const Item& l, const Item& r) { return rank(l, axis) < rank(r, axis); });
}

// below[i]: how many of x are less than x[i]; n is a multiple of kLanes.
void count_below(const float* x, int n, int32_t* below) {
  for (int i = 0; i < n; i += kLanes) {
    int32_t count[kLanes] = {};
    for (int j = 0; j < n; ++j)
      for (int lane = 0; lane < kLanes; ++lane) count[lane] += x[j] < x[i + lane];
    std::copy(count, count + kLanes, below + i);
  }
}

void partition_small(const Item* from, Item* to, int n, int64_t k, int axis) {
  float x[kSmall];
  int32_t below[kSmall];
  const int padded = (n + kLanes - 1) / kLanes * kLanes;
  for (int i = 0; i < n; ++i) x[i] = from[i].x[axis];
  std::fill(x + n, x + padded, kInfinity);
  count_below(x, padded, below);
  int64_t first = 0;
  for (int i = 0; i < n; ++i) first += below[i] < k;
  if (first != k) return partition_by_rank(from, to, n, k, axis);  // equal coordinates on both sides of the cut
  int64_t low = 0, high = k;
  for (int i = 0; i < n; ++i) {
    const bool is_low = below[i] < k;
    to[is_low ? low : high] = from[i];
    low += is_low;
    high += !is_low;
  }
}

// One pass puts what is surely below the cut, by a sample, in front, and what is surely above it at the back; what may be
// either is gathered in `from`, over what was read, and goes on. Free of branches that depend on the data.
void partition_in(Item* from, Item* to, int64_t n, int64_t k, int axis, int rounds) {
  if (n <= kSmall) return partition_small(from, to, static_cast<int>(n), k, axis);
  if (rounds == 0) return partition_by_rank(from, to, n, k, axis);
  float sample[kSmall], least = -kInfinity, most = kInfinity;
  int32_t below[kSmall];
  for (int i = 0; i < kSmall; ++i) sample[i] = from[i * n / kSmall].x[axis];
  count_below(sample, kSmall, below);
  const int wanted = static_cast<int>(k * kSmall / n);
  for (int i = 0; i < kSmall; ++i) {
    if (below[i] <= wanted - kMargin) least = std::max(least, sample[i]);
    if (below[i] >= wanted + kMargin) most = std::min(most, sample[i]);
  }
  int64_t low = 0, high = n, open = 0;  // to[0, low) is below, to[high, n) above, from[0, open) undecided
  for (int64_t i = 0; i < n; ++i) {
    const float x = from[i].x[axis];
    const Item item = from[i];
    to[low] = item;
    to[high - 1] = item;
    from[open] = item;
    const bool is_low = x < least, is_high = x > most;
    low += is_low;
    high -= is_high;
    open += !(is_low || is_high);
  }
  if (open == n) {  // nearly all are equal
    partition_by_rank(from, to, n, k, axis);
  } else if (k == low || k == high) {
    std::copy(from, from + open, to + low);
  } else if (low < k && k < high) {
    partition_in(from, to + low, open, k - low, axis, rounds - 1);
  } else {  // the sample missed the cut
    std::copy(from, from + open, to + low);
    const int64_t begin = k < low ? 0 : high, end = k < low ? low : n;
    std::copy(to + begin, to + end, from);
    partition_in(from, to + begin, end - begin, k - begin, axis, rounds - 1);
  }
}

}  // namespace

void partition(Item* from, Item* to, int64_t n, int64_t k, int axis) { partition_in(from, to, n, k, axis, kRounds); }

}  // namespace dlc
