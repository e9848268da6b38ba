// The CUDA search, run on the host, against the kd-tree: the same indices and the same bits.
#include "check.hpp"
#include "core/kdtree.hpp"
#include "core/morton.hpp"
#include "cuda/device.hpp"
#include "on_device.hpp"

using dlc::KdTree;
using shapes::kInfinity;

namespace {

std::vector<float> queries_for(const std::vector<float>& points, const std::string& shape, unsigned seed) {
  std::vector<float> queries = shapes::points(shape, 150, seed + 1);
  for (std::size_t i = 0; i < std::min<std::size_t>(points.size(), 60); ++i) queries.push_back(points[i]);
  for (const float far : {-30.0f, 1e4f, 3e18f, 1e20f}) queries.insert(queries.end(), {far, 2 * far, -far});
  queries.insert(queries.end(), {std::nanf(""), 0, 0, kInfinity, 0, 0});
  return queries;
}

template <class T>
void check_same(const std::vector<T>& found, const std::vector<T>& expected) {
  CHECK(found.size() == expected.size());
  CHECK(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(T)) == 0);
}

void check_knn(const KdTree& tree, const DeviceTree& on_device, const std::vector<float>& points,
               const std::vector<float>& queries, int k, float limit) {
  const std::size_t m = queries.size() / 3, room = m * static_cast<std::size_t>(k);
  std::vector<float> expected(room), found(room, -7), ragged(room, -7);
  std::vector<int64_t> expected_index(room), index(room, -7), ragged_index(room, -7);
  dlc::knn(tree, queries.data(), m, k, limit, expected.data(), expected_index.data(), 1);
  const std::vector<int32_t> order = device_order(queries, 10);
  dlc::cuda::knn(kCall, on_device.tree(), queries.data(), k % 2 ? order.data() : nullptr, m, k, limit, found.data(),
                 index.data());
  check_same(found, expected);
  check_same(index, expected_index);
  const int64_t point_splits[2] = {0, tree.size()}, query_splits[2] = {0, static_cast<int64_t>(m)};
  dlc::cuda::knn_ragged(kCall, points.data(), point_splits, queries.data(), query_splits, 1, m, k, limit, ragged.data(),
                        ragged_index.data());
  check_same(ragged, expected);
  check_same(ragged_index, expected_index);
}

void check_radius(const KdTree& tree, const DeviceTree& on_device, const std::vector<float>& queries, float radius) {
  const std::size_t m = queries.size() / 3;
  std::vector<int64_t> expected_splits(m + 1), splits(m + 1, 0);
  const int64_t total = dlc::radius_count(tree, queries.data(), m, radius, expected_splits.data(), 1);
  const std::vector<int32_t> order = device_order(queries, 10);
  dlc::cuda::radius_count(kCall, on_device.tree(), queries.data(), order.data(), m, radius, splits.data() + 1);
  for (std::size_t i = 0; i < m; ++i) splits[i + 1] += splits[i];
  check_same(splits, expected_splits);
  const std::size_t room = static_cast<std::size_t>(total);
  std::vector<float> expected(room), found(room, -7);
  std::vector<int64_t> expected_index(room), index(room, -7);
  std::vector<uint64_t> keys(room);
  dlc::radius_fill(tree, queries.data(), m, radius, expected_splits.data(), expected.data(), expected_index.data(), 1);
  dlc::cuda::radius_fill(kCall, on_device.tree(), queries.data(), nullptr, m, radius, splits.data(), keys.data(),
                         found.data(), index.data());
  check_same(found, expected);
  check_same(index, expected_index);
}

void check_shape(const std::string& shape, int64_t n, unsigned seed) {
  const std::vector<float> points = shapes::points(shape, n, seed), queries = queries_for(points, shape, seed);
  const KdTree tree(points.data(), n, 1);
  const DeviceTree on_device(points);
  const float scale = shape == "tiny" ? 1e-22f : 1.0f;
  for (const int k : {1, 2, 8, 9, 20, 64})
    for (const float limit : {kInfinity, 0.15f * scale, 0.0f}) check_knn(tree, on_device, points, queries, k, limit);
  for (const float radius : {0.0f, 0.1f * scale, 0.3f * scale}) check_radius(tree, on_device, queries, radius);

  std::vector<int64_t> expected(static_cast<std::size_t>(n));
  dlc::morton_order(points.data(), n, expected.data(), 1);
  const std::vector<int32_t> order = device_order(points, dlc::kMortonBits);
  CHECK(std::equal(order.begin(), order.end(), expected.begin()));
}

// Clouds of many sizes, an empty one included, one after another.
void check_ragged(int k) {
  const std::vector<int64_t> sizes{3, 0, 700, 1, 256, 33}, counts{5, 4, 0, 130, 300, 1};
  std::vector<int64_t> point_splits{0}, query_splits{0};
  for (std::size_t b = 0; b < sizes.size(); ++b) {
    point_splits.push_back(point_splits.back() + sizes[b]);
    query_splits.push_back(query_splits.back() + counts[b]);
  }
  const std::vector<float> points = shapes::points("grid", point_splits.back(), 1);
  const std::vector<float> queries = shapes::points("uniform", query_splits.back(), 2);
  std::vector<float> expected(queries.size() / 3 * static_cast<std::size_t>(k), -7), found(expected);
  std::vector<int64_t> expected_index(expected.size(), -7), index(expected_index);
  for (std::size_t b = 0; b < sizes.size(); ++b) {
    const KdTree tree(points.data() + 3 * point_splits[b], sizes[b], 1);
    const int64_t at = query_splits[b];
    dlc::knn(tree, queries.data() + 3 * at, counts[b], k, 0.9f, expected.data() + at * k, expected_index.data() + at * k,
             1);
  }
  dlc::cuda::knn_ragged(kCall, points.data(), point_splits.data(), queries.data(), query_splits.data(), 6, 300, k, 0.9f,
                        found.data(), index.data());
  check_same(found, expected);
  check_same(index, expected_index);
}

}  // namespace

int main() {
  unsigned seed = 0;
  for (const std::string& shape : shapes::names())
    for (const int64_t n : {1, 7, 8, 65, 600}) check_shape(shape, n, seed++);
  check_shape("surface", 9000, seed);
  for (const int k : {1, 5, 65, 128}) check_ragged(k);
  CHECK(dlc::cuda::device_count() == 1 && dlc::cuda::why_no_device().empty());
  return failures();
}
