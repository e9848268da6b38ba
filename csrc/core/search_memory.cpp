#include "core/search_memory.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/kdtree.hpp"
#include "core/search.hpp"

namespace dlc {
namespace {

// By more than rounding and underflow can cost.
bool surely_less(float a, float b) { return a * 1.00001f + 1e-18f < b; }

}  // namespace

std::size_t SearchMemory::bytes(int64_t n) {
  const auto count = static_cast<std::size_t>(n);
  return (count + kRun - 1) / kRun * sizeof(Run) + count * sizeof(Point);
}

SearchMemory::SearchMemory(void* memory, int64_t n)
    : runs(static_cast<Run*>(memory)), points(reinterpret_cast<Point*>(runs + (n + kRun - 1) / kRun)) {}

void SearchMemory::nearest_of_run(const KdTree& tree, int64_t first, const float* queries, int64_t m, float max_d2,
                                  int32_t* index, float* d2) const {
  Run& run = runs[first / kRun];
  Point* const remembered = points + first;
  float open[3 * kRun], open_d2[kRun], second_d2[kRun];
  int32_t open_index[kRun], at[kRun];
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i) {
    const float* const q = queries + 3 * i;
    const Point& before = remembered[i];
    if (before.second > 0) {
      const float now = search::squared_distance(q, tree.point(before.index));
      if (surely_less(std::sqrt(now) + std::sqrt(search::squared_distance(q, before.query)), before.second)) {
        index[i] = now < max_d2 ? before.index : -1;
        d2[i] = now < max_d2 ? now : std::numeric_limits<float>::infinity();
        continue;
      }
    }
    std::copy(q, q + 3, open + 3 * count);
    at[count++] = static_cast<int32_t>(i);
  }
  const bool measure = run.slack < 0;
  const bool two = measure || search::squared_distance(queries, run.last) < run.slack * run.slack;
  if (two) tree.nearest_two_of_each(open, count, max_d2, open_index, open_d2, second_d2);
  else tree.nearest_of_each(open, count, max_d2, open_index, open_d2);
  float slack = 0;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t i = at[c];
    index[i] = open_index[c];
    d2[i] = open_d2[c];
    Point& point = remembered[i];
    const bool known = two && index[i] >= 0;
    std::copy(open + 3 * c, open + 3 * c + 3, point.query);
    point.index = index[i];
    point.second = known ? std::sqrt(second_d2[c]) : 0;
    if (known) slack += (point.second - std::sqrt(d2[i])) / static_cast<float>(2 * count);
  }
  if (measure && slack > 0 && std::isfinite(slack)) run.slack = slack;
  if (run.slack == 0) run.slack = -1;
  std::copy(queries, queries + 3, run.last);
}

}  // namespace dlc
