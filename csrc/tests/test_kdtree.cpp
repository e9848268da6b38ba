// The tree against brute force: same indices, same bits, on both instruction sets and any number of threads.
#include "core/kdtree.hpp"

#include <algorithm>

#include "check.hpp"
#include "core/morton.hpp"
#include "core/simd.hpp"

using dlc::KdTree;
using shapes::kInfinity;
using Neighbours = std::vector<std::pair<float, int32_t>>;

namespace {

// One query; false and outputs untouched where there is no point.
bool nearest(const KdTree& tree, const float* q, float limit, int32_t& index, float& d2) {
  int32_t found;
  float found_d2;
  tree.nearest_of_each(q, 1, limit, &found, &found_d2);
  if (found < 0) return false;
  index = found, d2 = found_d2;
  return true;
}

// Every point, sorted by (d2, index).
Neighbours brute_force(const std::vector<float>& points, const float* q) {
  Neighbours all;
  for (std::size_t i = 0; i < points.size() / 3; ++i) {
    const float x = q[0] - points[3 * i], y = q[1] - points[3 * i + 1], z = q[2] - points[3 * i + 2];
    all.emplace_back(x * x + y * y + z * z, static_cast<int32_t>(i));
  }
  std::sort(all.begin(), all.end());
  return all;
}

std::vector<float> queries_for(const std::vector<float>& points, const std::string& shape, unsigned seed) {
  std::vector<float> queries = shapes::points(shape, 24, seed + 1);
  for (std::size_t i = 0; i < std::min<std::size_t>(points.size(), 36); ++i) queries.push_back(points[i]);
  for (const float far : {-30.0f, 1e4f, 3e18f}) queries.insert(queries.end(), {far, 2 * far, -far});
  return queries;
}

Neighbours nearer_than(const Neighbours& all, float limit) {
  Neighbours some;
  for (const auto& pair : all)
    if (pair.first < limit) some.push_back(pair);
  return some;
}

void check_query(const KdTree& tree, const Neighbours& all, const float* q, float limit) {
  const Neighbours expected = nearer_than(all, limit);
  const int64_t count = static_cast<int64_t>(expected.size());

  int32_t index = -7;
  float d2 = -7;
  CHECK(nearest(tree, q, limit, index, d2) == (count > 0));
  CHECK(index == (count ? expected[0].second : -7));
  CHECK(d2 == (count ? expected[0].first : -7.0f));
  for (const int k : {1, 2, 5, 20, 63, 64, 65, 150, 6000}) {
    std::vector<int32_t> indices(static_cast<std::size_t>(k), -7);
    std::vector<float> distances(static_cast<std::size_t>(k), -7);
    const int found = tree.knn(q, k, limit, indices.data(), distances.data());
    CHECK(found == std::min<int64_t>(k, count));
    for (int i = 0; i < std::min<int64_t>(found, count); ++i) {
      const std::size_t at = static_cast<std::size_t>(i);
      CHECK(indices[at] == expected[at].second && distances[at] == expected[at].first);
    }
  }
  CHECK(tree.knn(q, 0, limit, nullptr, nullptr) == 0);

  Neighbours found{{1.0f, 1}};
  CHECK(tree.radius(q, limit, found) == count);
  CHECK(found == expected);
  CHECK(tree.count(q, limit) == count);
}

void check_shape(const std::string& shape, int64_t n, unsigned seed) {
  const std::vector<float> points = shapes::points(shape, n, seed);
  const KdTree tree(points.data(), n, 1 + static_cast<int>(seed % 3));
  CHECK(tree.size() == n);
  for (int64_t i = 0; i < n; ++i)
    CHECK(std::memcmp(tree.point(static_cast<int32_t>(i)), &points[3 * static_cast<std::size_t>(i)], 12) == 0);
  const std::vector<float> queries = queries_for(points, shape, seed);
  for (std::size_t i = 0; i + 3 <= queries.size(); i += 3) {
    const float* q = &queries[i];
    const Neighbours all = brute_force(points, q);
    std::vector<float> limits{kInfinity, 0.0f, -1.0f, std::nanf(""), 0.01f};
    if (n > 0) {  // exactly at a distance, and just above it
      const float edge = all[std::min<std::size_t>(all.size() - 1, 6)].first;
      limits.insert(limits.end(), {edge, std::nextafter(edge, kInfinity)});
    }
    for (const float limit : limits) check_query(tree, all, q, limit);
  }
}

// Near queries, a strange one now and then, against brute force.
void check_runs(const std::string& shape, int64_t n, unsigned seed) {
  const std::vector<float> points = shapes::points(shape, n, seed), others = shapes::points(shape, n, seed + 1);
  const KdTree tree(points.data(), n, 1);
  std::vector<int64_t> order(static_cast<std::size_t>(n));
  dlc::morton_order(others.data(), n, order.data(), 1);
  const int64_t m = std::min<int64_t>(n, 150);
  std::vector<float> queries;
  for (int64_t i = 0; i < m; ++i) {
    const bool jump = i % 40 == 7;
    const float* q = jump ? &points[static_cast<std::size_t>(3 * i)]
                          : &others[static_cast<std::size_t>(3 * order[static_cast<std::size_t>(i)])];
    queries.insert(queries.end(), q, q + 3);
  }
  if (m > 80) queries[3 * 32] = std::nanf(""), queries[3 * 50 + 1] = kInfinity, queries[3 * 70] = 1e4f;  // 32 begins a run
  std::vector<Neighbours> all;
  for (std::size_t i = 0; i < queries.size(); i += 3) {
    const bool finite = std::isfinite(queries[i]) && std::isfinite(queries[i + 1]) && std::isfinite(queries[i + 2]);
    all.push_back(finite ? brute_force(points, &queries[i]) : Neighbours{});
  }
  for (const float limit : {kInfinity, 0.01f, 0.0f, std::nanf("")})
    for (const int k : {1, 3, 20, 100}) {
      std::vector<int32_t> index(static_cast<std::size_t>(m * k)), count(static_cast<std::size_t>(m));
      std::vector<float> d2(index.size());
      tree.knn_of_each(queries.data(), m, k, limit, index.data(), d2.data(), count.data());
      std::vector<int32_t> one(static_cast<std::size_t>(m));
      std::vector<float> one_d2(one.size());
      tree.nearest_of_each(queries.data(), m, limit, one.data(), one_d2.data());
      std::vector<int32_t> first(one.size());
      std::vector<float> first_d2(one.size()), second_d2(one.size());
      tree.nearest_two_of_each(queries.data(), m, limit, first.data(), first_d2.data(), second_d2.data());
      CHECK(first == one && first_d2 == one_d2);
      for (std::size_t i = 0; i < static_cast<std::size_t>(m); ++i) {
        const Neighbours expected = nearer_than(all[i], limit);
        CHECK(count[i] == std::min<int64_t>(k, static_cast<int64_t>(expected.size())));
        for (std::size_t j = 0; j < static_cast<std::size_t>(count[i]); ++j) {
          const std::size_t at = i * static_cast<std::size_t>(k) + j;
          CHECK(index[at] == expected[j].second && d2[at] == expected[j].first);
        }
        CHECK(one[i] == (expected.empty() ? -1 : expected[0].second));
        CHECK(one_d2[i] == (expected.empty() ? kInfinity : expected[0].first));
        if (expected.size() > 1) CHECK(second_d2[i] == expected[1].first);
        else if (limit > 0) CHECK(second_d2[i] <= limit && second_d2[i] >= std::nextafter(limit, 0.0f));
      }
    }
}

void check_strange_queries() {
  const std::vector<float> points = shapes::points("uniform", 500, 3);
  const KdTree tree(points.data(), 500, 1);
  const float nan = std::nanf("");
  for (const float bad : {nan, -nan, kInfinity, -kInfinity})
    for (int axis = 0; axis < 3; ++axis) {
      float q[3] = {0.5f, 0.5f, 0.5f}, d2;
      q[axis] = bad;
      int32_t index;
      CHECK(!nearest(tree, q, kInfinity, index, d2));
      CHECK(tree.count(q, kInfinity) == 0);
    }
  std::vector<float> broken = points;  // not allowed, but must not crash or hide the others
  broken[30] = nan, broken[61] = kInfinity, broken[92] = -kInfinity;
  const KdTree survivor(broken.data(), 500, 1);
  int32_t index = -1;
  float d2 = -1;
  CHECK(nearest(survivor, &points[0], kInfinity, index, d2) && index == 0 && d2 == 0);
}

void check_squared_limit() {
  std::mt19937 random(5);
  std::vector<float> limits{0, -1, kInfinity, 1e-30f, 1e-20f, 1.9e19f, 3e38f, 1, 0.1f};
  for (int i = 0; i < 1000; ++i) limits.push_back(std::ldexp(static_cast<float>(random()), static_cast<int>(i % 60) - 60));
  for (const float limit : limits) {
    const float squared = dlc::squared_limit(limit);
    if (!(limit > 0)) {
      CHECK(squared == 0);
      continue;
    }
    CHECK(std::sqrt(squared) >= limit);
    CHECK(std::sqrt(std::nextafter(squared, 0.0f)) < limit);
  }
  CHECK(dlc::squared_limit(std::nanf("")) == 0);
}

struct Batch {
  std::vector<float> distances, ball_distances;
  std::vector<int64_t> indices, splits, ball_indices;

  bool operator==(const Batch& other) const {
    return distances == other.distances && ball_distances == other.ball_distances && indices == other.indices &&
           splits == other.splits && ball_indices == other.ball_indices;
  }
};

Batch run_batch(const std::vector<float>& points, const std::vector<float>& queries, int k, float limit, float radius,
                int threads) {
  const KdTree tree(points.data(), static_cast<int64_t>(points.size() / 3), threads);
  const std::size_t m = queries.size() / 3;
  Batch out;
  out.distances.resize(m * static_cast<std::size_t>(k));
  out.indices.resize(out.distances.size());
  dlc::knn(tree, queries.data(), static_cast<int64_t>(m), k, limit, out.distances.data(), out.indices.data(), threads);
  out.splits.resize(m + 1);
  const int64_t total =
      dlc::radius_count(tree, queries.data(), static_cast<int64_t>(m), radius, out.splits.data(), threads);
  out.ball_distances.resize(static_cast<std::size_t>(total));
  out.ball_indices.resize(static_cast<std::size_t>(total));
  dlc::radius_fill(tree, queries.data(), static_cast<int64_t>(m), radius, out.splits.data(), out.ball_distances.data(),
                   out.ball_indices.data(), threads);
  return out;
}

void check_batches(int64_t n, int64_t m, int k) {
  const std::vector<float> points = shapes::points("surface", n, 11), queries = shapes::points("surface", m, 12);
  const float limit = 0.05f, radius = 0.04f;
  const Batch batch = run_batch(points, queries, k, limit, radius, 1);
  for (int64_t i = 0; i < m; i += 37) {
    const Neighbours all = brute_force(points, &queries[3 * static_cast<std::size_t>(i)]);
    for (int j = 0; j < k; ++j) {
      const std::size_t at = static_cast<std::size_t>(i * k + j), rank = static_cast<std::size_t>(j);
      const bool found = rank < all.size() && std::sqrt(all[rank].first) < limit;
      CHECK(batch.indices[at] == (found ? all[rank].second : -1));
      CHECK(batch.distances[at] == (found ? std::sqrt(all[rank].first) : kInfinity));
    }
    std::size_t inside = 0;
    const std::size_t row = static_cast<std::size_t>(i), start = static_cast<std::size_t>(batch.splits[row]);
    for (; inside < all.size() && std::sqrt(all[inside].first) < radius; ++inside) {
      CHECK(batch.ball_indices[start + inside] == all[inside].second);
      CHECK(batch.ball_distances[start + inside] == std::sqrt(all[inside].first));
    }
    CHECK(batch.splits[row + 1] - batch.splits[row] == static_cast<int64_t>(inside));
  }
  const bool avx2 = dlc::use_avx2();
  for (const bool vectors : {false, avx2}) {
    dlc::set_use_avx2(vectors);
    for (const int threads : {1, 2, 3}) CHECK(run_batch(points, queries, k, limit, radius, threads) == batch);
  }
}

// Padded clouds against a search in each: no point in the first, one in the second, padding of NaN in the others.
void check_padded(int k, int threads) {
  constexpr int64_t batch = 5, n = 40, m = 90;
  std::vector<float> points = shapes::points("grid", batch * m, 3), queries = shapes::points("uniform", batch * n, 4);
  std::vector<uint8_t> point_mask(batch * m), query_mask(batch * n);
  for (std::size_t i = 0; i < point_mask.size(); ++i)
    point_mask[i] = i / m == 0 ? 0 : i / m == 1 ? i % m == 50 : i % 3 != 1;
  for (std::size_t i = 0; i < query_mask.size(); ++i) query_mask[i] = i / n == 4 ? 0 : i % 4 != 2;
  const std::size_t width = static_cast<std::size_t>(k);
  std::vector<float> distances(query_mask.size() * width, kInfinity), found(distances.size(), -7);
  std::vector<int64_t> indices(distances.size(), -1), found_indices(distances.size(), -7), places(width);
  for (std::size_t b = 0; b < batch; ++b) {
    std::vector<float> cloud;
    std::vector<int64_t> rows;
    for (std::size_t i = 0; i < m; ++i) {
      float* const p = points.data() + 3 * (b * m + i);
      if (point_mask[b * m + i]) cloud.insert(cloud.end(), p, p + 3), rows.push_back(static_cast<int64_t>(i));
      else p[i % 3] = std::nanf("");
    }
    const KdTree tree(cloud.data(), static_cast<int64_t>(rows.size()), 1);
    for (std::size_t i = b * n; i < (b + 1) * n; ++i) {
      if (!query_mask[i]) continue;
      dlc::knn(tree, queries.data() + 3 * i, 1, k, 0.9f, distances.data() + i * width, places.data(), 1);
      for (std::size_t j = 0; j < width; ++j)
        if (places[j] >= 0) indices[i * width + j] = rows[static_cast<std::size_t>(places[j])];
    }
  }
  dlc::knn_batch({queries.data(), query_mask.data(), n}, {points.data(), point_mask.data(), m}, batch, k, 0.9f,
                 found.data(), found_indices.data(), threads);
  CHECK(found == distances);
  CHECK(found_indices == indices);
}

void check_morton() {
  for (const int64_t n : {0, 1, 2, 1000, 30000}) {
    const std::vector<float> points = shapes::points("mixed", n, 4);
    std::vector<int64_t> order(static_cast<std::size_t>(n)), again(order);
    dlc::morton_order(points.data(), n, order.data(), 1);
    dlc::morton_order(points.data(), n, again.data(), 3);
    CHECK(order == again);
    const std::vector<uint32_t> coarse = dlc::coarse_morton_order(points.data(), n, 2);
    std::vector<int> seen(order.size(), 0);
    for (const int64_t i : order) ++seen[static_cast<std::size_t>(i)];
    for (const uint32_t i : coarse) ++seen[i];
    for (const int times : seen) CHECK(times == 2);
  }
  // Eight corners given backwards: x is the lowest bit of the code.
  std::vector<float> corners;
  for (int c = 7; c >= 0; --c)
    for (int a = 0; a < 3; ++a) corners.push_back(static_cast<float>(c >> a & 1));
  std::vector<int64_t> order(8);
  dlc::morton_order(corners.data(), 8, order.data(), 1);
  for (int64_t i = 0; i < 8; ++i) CHECK(order[static_cast<std::size_t>(i)] == 7 - i);
  const std::vector<float> equal = shapes::points("equal", 100, 1);
  order.resize(100);
  dlc::morton_order(equal.data(), 100, order.data(), 1);
  for (int64_t i = 0; i < 100; ++i) CHECK(order[static_cast<std::size_t>(i)] == i);
  CHECK(dlc::morton_code(0x1fffff, 0, 0) == 0x1249249249249249ull);
  CHECK((dlc::morton_code(5, 3, 1) == (1 | 2 | 4 | 2 << 3 | 1 << 6)));
}

}  // namespace

int main() {
  std::printf("instruction set: %s\n", dlc::simd_level());
  const bool avx2 = dlc::use_avx2();
  for (const bool vectors : {false, avx2}) {
    dlc::set_use_avx2(vectors);
    for (const std::string& shape : shapes::names()) {
      unsigned seed = 1;
      for (const int64_t n : {0, 1, 2, 15, 16, 17, 100, 128, 129, 1000, 1500}) check_shape(shape, n, seed++);
      for (const int64_t n : {0, 1, 40, 1024, 1025, 5000}) check_runs(shape, n, seed++);
    }
    check_strange_queries();
  }
  check_shape("surface", 5000, 9);
  check_squared_limit();
  check_batches(5000, 300, 1);
  check_batches(5000, 6000, 1);
  check_batches(3000, 5000, 7);
  check_batches(3, 100, 5);
  check_batches(0, 10, 2);
  for (const int k : {1, 4, 70})
    for (const int threads : {1, 3}) check_padded(k, threads);
  check_morton();
  return failures() ? 1 : 0;
}
