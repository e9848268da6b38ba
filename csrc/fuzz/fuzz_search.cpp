// Nearest neighbours, radii, normals, voxels, Morton order, gradients of intensity, for any finite clouds.
#include <stdexcept>
#include <utility>

#include "core/intensities.hpp"
#include "core/kdtree.hpp"
#include "core/morton.hpp"
#include "core/normals.hpp"
#include "core/voxel.hpp"
#include "input.hpp"

namespace {

using namespace fuzz;

struct Clouds {
  Floats p, q;  // queries and points
  int64_t n, m;
  float limit;
  int k;
};

// The answer as its definition has it, by looking at every point.
void compare_with_definition(const Clouds& c, const Floats& distances, const Integers& indices) {
  for (int64_t i = 0; i < c.n; ++i) {
    std::vector<std::pair<float, int64_t>> all;
    for (int64_t j = 0; j < c.m; ++j) {
      const float *a = c.p.data() + 3 * i, *b = c.q.data() + 3 * j;
      const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2], d2 = x * x + y * y + z * z;
      if (std::sqrt(d2) < c.limit) all.emplace_back(d2, j);
    }
    std::sort(all.begin(), all.end());
    for (int64_t s = 0; s < c.k; ++s) {
      const bool found = size(s) < all.size();
      REQUIRE(indices[size(i * c.k + s)] == (found ? all[size(s)].second : -1));
      REQUIRE(distances[size(i * c.k + s)] == (found ? std::sqrt(all[size(s)].first) : kInfinity));
    }
  }
}

void neighbours(const Clouds& c, int threads, Answer& answer) {
  const dlc::KdTree tree(c.q.data(), c.m, threads);
  Floats distances(size(c.n * c.k));
  Integers indices(size(c.n * c.k)), splits(size(c.n + 1));
  dlc::knn(tree, c.p.data(), c.n, c.k, c.limit, distances.data(), indices.data(), threads);
  if (c.n * c.m <= 1 << 12) compare_with_definition(c, distances, indices);
  answer.add(distances), answer.add(indices);
  const int64_t total = dlc::radius_count(tree, c.p.data(), c.n, c.limit, splits.data(), threads);
  REQUIRE(total == splits.back() && total >= 0 && total <= c.n * c.m);
  Floats near(size(total));
  Integers which(size(total));
  dlc::radius_fill(tree, c.p.data(), c.n, c.limit, splits.data(), near.data(), which.data(), threads);
  answer.add(splits), answer.add(near), answer.add(which);
  for (int64_t i = 0; i < c.n; ++i)  // the first of each are those of knn
    for (int64_t s = 0; s < std::min<int64_t>(c.k, splits[size(i + 1)] - splits[size(i)]); ++s)
      REQUIRE(which[size(splits[size(i)] + s)] == indices[size(i * c.k + s)]);
}

void surfaces(Input in, const Clouds& c, int threads, Answer& answer) {
  const dlc::KdTree tree(c.q.data(), c.m, threads);
  Floats normals(size(3 * c.m)), covariances(size(6 * c.m)), gradients(size(4 * c.m));
  dlc::normals(tree, c.q.data(), c.m, c.k, c.limit, normals.data(), covariances.data(), threads);
  for (int64_t i = 0; i < c.m; ++i) {
    const double normal[3] = {normals[size(3 * i)], normals[size(3 * i + 1)], normals[size(3 * i + 2)]};
    REQUIRE(std::fabs(dlc::dot(normal, normal) - 1.0) < 1e-5);
  }
  answer.add(normals), answer.add(covariances);
  const Floats light = numbers(in, c.m, 1), given = directions(in, c.m);
  dlc::intensity_gradients(tree, light.data(), given.data(), c.k, c.limit, gradients.data(), threads);
  answer.add(gradients);
  const Floats any = any_numbers(in, c.m, 3);
  Integers rows(size(c.n * c.k));
  for (int64_t& row : rows) row = in.byte() % 16 == 0 ? in.bits<int64_t>() : in.byte() % (c.m + 2) - 1;
  Floats of_rows(size(3 * c.n));
  dlc::normals_of_rows(any.data(), c.m, rows.data(), 1, c.n, c.k, of_rows.data(), threads);
  answer.add(of_rows);
}

void groups(Input in, const Clouds& c, int threads, Answer& answer) {
  Integers order(size(c.m));
  dlc::morton_order(c.q.data(), c.m, order.data(), threads);
  answer.add(order);
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < c.m; ++i) REQUIRE(order[size(i)] == i);
  const double voxel = in.coin() ? static_cast<double>(reach(in, c.q)) : std::max(std::fabs(in.finite<double>()), 5e-324);
  Integers inverse(size(c.m), -1);
  Floats means(size(3 * c.m));
  try {
    const int64_t voxels = dlc::voxel_downsample(c.q.data(), c.m, voxel, inverse.data(), means.data(), threads);
    REQUIRE(voxels >= 1 && voxels <= c.m);
    for (const int64_t v : inverse) REQUIRE(v >= 0 && v < voxels);
    means.resize(size(3 * voxels));
    REQUIRE(all_finite(means));
    answer.add(inverse), answer.add(means);
  } catch (const std::invalid_argument&) {  // too many of them
  }
}

void batches(Input in, int threads, Answer& answer) {
  const int64_t batch = in.byte() % 4, rows = in.byte() % 24, columns = in.byte() % 24;
  const int k = in.pick({1, 3, 20, 70});
  Floats p = numbers(in, batch * rows, 3), q = numbers(in, batch * columns, 3);
  std::vector<uint8_t> p_mask(size(batch * rows)), q_mask(size(batch * columns));
  const auto mask = [&](std::vector<uint8_t>& real, Floats& points) {
    for (std::size_t i = 0; i < real.size(); ++i) {
      real[i] = in.byte() % 4 != 0;
      if (!real[i]) points[3 * i] = in.bits<float>();  // padding holds anything
    }
  };
  const bool masked[2] = {in.coin(), in.coin()};
  if (masked[0]) mask(p_mask, p);
  if (masked[1]) mask(q_mask, q);
  const float limit = in.limit(reach(in, numbers(in, 2, 3)));
  Floats distances(size(batch * rows * k));
  Integers indices(distances.size());
  const dlc::PaddedClouds queries{p.data(), masked[0] ? p_mask.data() : nullptr, rows};
  const dlc::PaddedClouds points{q.data(), masked[1] ? q_mask.data() : nullptr, columns};
  dlc::knn_batch(queries, points, batch, k, limit, distances.data(), indices.data(), threads);
  for (std::size_t i = 0; i < indices.size(); ++i) {
    REQUIRE(indices[i] >= -1 && indices[i] < columns && (indices[i] < 0) == (distances[i] == kInfinity));
    if (indices[i] >= 0 && masked[1]) {
      const auto b = static_cast<int64_t>(i) / (rows * k);
      REQUIRE(q_mask[size(b * columns + indices[i])]);
    }
  }
  answer.add(distances), answer.add(indices);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t bytes) {
  Input in(data, bytes);
  const int what = in.byte() % 4;
  if (what == 3) {
    same_twice(in, [&](int threads, Answer& answer) { batches(in, threads, answer); });
    return 0;
  }
  Clouds c{};
  c.n = in.count(what == 0 ? 4200 : 40), c.m = std::max<int64_t>(1, in.count(c.n > 300 ? 130 : 1100));
  c.p = cloud(in, c.n), c.q = cloud(in, c.m);
  if (in.byte() % 4 == 0) std::copy_n(c.q.begin(), std::min(c.p.size(), c.q.size()), c.p.begin());
  c.k = in.pick({1, 2, 5, 17, 64, 65, 80});
  if (c.n > 300 || c.m > 300) c.k = std::min(c.k, 17);
  c.limit = in.limit(reach(in, c.q));
  same_twice(in, [&](int threads, Answer& answer) {
    if (what == 0) neighbours(c, threads, answer);
    if (what == 1) surfaces(in, c, threads, answer);
    if (what == 2) groups(in, c, threads, answer);
  });
  return 0;
}
