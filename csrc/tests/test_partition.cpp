// The k least against a sort.
#include "core/partition.hpp"

#include <algorithm>

#include "check.hpp"

namespace {

std::vector<int32_t> sorted(std::vector<int32_t> indices) {
  std::sort(indices.begin(), indices.end());
  return indices;
}

std::vector<int32_t> indices_of(const std::vector<dlc::Item>& items, std::size_t begin, std::size_t end) {
  std::vector<int32_t> out;
  for (std::size_t i = begin; i < end; ++i) out.push_back(items[i].index);
  return out;
}

void check_cut(const std::vector<dlc::Item>& items, std::size_t k, int axis) {
  const std::size_t n = items.size();
  std::vector<dlc::Item> expected = items, from = items, to(n, dlc::Item{{-1, -1, -1}, -1});
  std::sort(expected.begin(), expected.end(), [axis](const dlc::Item& l, const dlc::Item& r) {
    return l.x[axis] != r.x[axis] ? l.x[axis] < r.x[axis] : l.index < r.index;
  });
  dlc::partition(from.data(), to.data(), static_cast<int64_t>(n), static_cast<int64_t>(k), axis);
  CHECK(sorted(indices_of(to, 0, k)) == sorted(indices_of(expected, 0, k)));
  CHECK(sorted(indices_of(to, k, n)) == sorted(indices_of(expected, k, n)));
  for (const dlc::Item& item : to)
    CHECK(item.index >= 0 && std::equal(item.x, item.x + 3, items[static_cast<std::size_t>(item.index)].x));
}

// Values that mislead a regular sample: those it takes are the least, or the greatest, of all.
std::vector<dlc::Item> misleading(int64_t n, float sampled) {
  std::vector<dlc::Item> items;
  for (int64_t i = 0; i < n; ++i) items.push_back({{static_cast<float>(i % 97), 0, 0}, static_cast<int32_t>(i)});
  for (int64_t i = 0; i < 64; ++i) items[static_cast<std::size_t>(i * n / 64)].x[0] = sampled + static_cast<float>(i);
  return items;
}

}  // namespace

int main() {
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {2, 17, 63, 64, 65, 100, 500, 5000}) {
      const std::vector<float> points = shapes::points(shape, n, 5);
      std::vector<dlc::Item> items;
      for (std::size_t i = 0; i < points.size(); i += 3)
        items.push_back({{points[i], points[i + 1], points[i + 2]}, static_cast<int32_t>(i / 3)});
      for (const int64_t k : {int64_t{1}, n / 7, n / 2, n - 1})
        for (int axis = 0; axis < 3 && k > 0; ++axis) check_cut(items, static_cast<std::size_t>(k), axis);
    }
  for (const float sampled : {-1000.0f, 1000.0f, -0.0f})
    for (const int64_t n : {200, 6400})
      for (const std::size_t k : {std::size_t{1}, std::size_t{100}, static_cast<std::size_t>(n - 1)})
        check_cut(misleading(n, sampled), k, 0);
  return failures() != 0;
}
