// Would a dense grid answer bounded nearest-neighbour searches faster than the tree? At its best as fast, so there is none.
//
//   g++ -O3 -std=c++17 -ffp-contract=off -Icsrc benchmarks/dense_grid.cpp csrc/core/*.cpp -lpthread -o dense_grid
//   ./dense_grid
//
// Both are exact; queries lie in Morton order, as ICP has them; one thread, its processor time. The grid has cells as wide
// as the bound, so that 27 of them are enough: nine rows of three, each one run of coordinates for AVX2.
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "core/kdtree.hpp"
#include "core/morton.hpp"

namespace {

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class Grid {
 public:
  Grid(const std::vector<float>& points, float cell) : scale_(1 / cell) {
    const size_t n = points.size() / 3;
    float hi[3];
    dlc::bounding_box(points.data(), static_cast<int64_t>(n), lo_, hi);
    for (int a = 0; a < 3; ++a) {
      size_[a] = static_cast<int64_t>((hi[a] - lo_[a]) * scale_) + 3;
      lo_[a] -= cell;
    }
    std::vector<int64_t> cells(n);
    start_.assign(static_cast<size_t>(size_[0] * size_[1] * size_[2]) + 1, 0);
    for (size_t i = 0; i < n; ++i) {
      int64_t at[3];
      for (int a = 0; a < 3; ++a) at[a] = static_cast<int64_t>((points[3 * i + a] - lo_[a]) * scale_);
      ++start_[static_cast<size_t>(cells[i] = (at[2] * size_[1] + at[1]) * size_[0] + at[0]) + 1];
    }
    for (size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];
    std::vector<int32_t> next(start_.begin(), start_.end() - 1);
    for (auto& x : x_) x.assign(n + 8, 1e30f);
    index_.resize(n + 8);
    for (size_t i = 0; i < n; ++i) {
      const auto slot = static_cast<size_t>(next[static_cast<size_t>(cells[i])]++);
      for (int a = 0; a < 3; ++a) x_[a][slot] = points[3 * i + a];
      index_[slot] = static_cast<int32_t>(i);
    }
  }

  size_t cells() const { return start_.size() - 1; }

  __attribute__((target("avx2"))) void nearest(const float* q, float bound, int32_t& index, float& d2) const {
    int64_t at[3];
    for (int a = 0; a < 3; ++a) at[a] = static_cast<int64_t>(std::floor((q[a] - lo_[a]) * scale_));
    __m256 best = _mm256_set1_ps(bound);
    __m256i who = _mm256_set1_epi32(-1);
    const int64_t first = std::max<int64_t>(0, at[0] - 1), last = std::min(size_[0] - 1, at[0] + 1);
    for (int64_t z = std::max<int64_t>(0, at[2] - 1); z <= std::min(size_[2] - 1, at[2] + 1); ++z)
      for (int64_t y = std::max<int64_t>(0, at[1] - 1); y <= std::min(size_[1] - 1, at[1] + 1) && first <= last; ++y) {
        const auto row = static_cast<size_t>((z * size_[1] + y) * size_[0]);
        const int32_t end = start_[row + static_cast<size_t>(last) + 1];
        for (int32_t i = start_[row + static_cast<size_t>(first)]; i < end; i += 8) {  // past the end: other cells' points
          __m256 sum = _mm256_setzero_ps();
          for (int a = 0; a < 3; ++a) {
            const __m256 d = _mm256_sub_ps(_mm256_set1_ps(q[a]), _mm256_loadu_ps(&x_[a][static_cast<size_t>(i)]));
            sum = _mm256_add_ps(sum, _mm256_mul_ps(d, d));
          }
          const __m256 nearer = _mm256_cmp_ps(sum, best, _CMP_LT_OQ);
          best = _mm256_blendv_ps(best, sum, nearer);
          const auto* const indices = reinterpret_cast<const __m256i*>(&index_[static_cast<size_t>(i)]);
          who = _mm256_blendv_epi8(who, _mm256_loadu_si256(indices), _mm256_castps_si256(nearer));
        }
      }
    float all_d2[8];
    int32_t all[8];
    _mm256_storeu_ps(all_d2, best);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), who);
    index = -1, d2 = bound;
    for (int lane = 0; lane < 8; ++lane)
      if (all[lane] >= 0 && (all_d2[lane] < d2 || (all_d2[lane] == d2 && all[lane] < index)))
        d2 = all_d2[lane], index = all[lane];
  }

 private:
  float lo_[3], scale_;
  int64_t size_[3];
  std::vector<int32_t> start_, index_;
  std::vector<float> x_[3];
};

std::vector<float> surface(size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> points(3 * n);
  for (size_t i = 0; i < n; ++i) {
    float v[3], square = 0;
    for (float& x : v) x = normal(generator), square += x * x;
    for (float& x : v) x /= std::sqrt(square);
    const float radius = 1 + 0.3f * std::sin(3 * v[0]) * std::cos(2 * v[1]) + 0.2f * std::cos(5 * v[2] + 1);
    const float axes[3] = {1, 0.7f, 0.5f};
    for (int a = 0; a < 3; ++a) points[3 * i + static_cast<size_t>(a)] = axes[a] * radius * v[a];
  }
  return points;
}

}  // namespace

int main() {
  for (const size_t n : {size_t{100'000}, size_t{1'000'000}}) {
    const std::vector<float> target = surface(n, 1), source = surface(n, 2);
    const auto count = static_cast<int64_t>(n);
    std::vector<int64_t> order(n);
    dlc::morton_order(source.data(), count, order.data(), 1);
    std::vector<float> queries;
    for (const int64_t i : order) queries.insert(queries.end(), &source[3 * i], &source[3 * i] + 3);
    const double began = seconds();
    const dlc::KdTree tree(target.data(), count, 1);
    const double built = seconds() - began;
    const double spacing = std::sqrt(8.0 / static_cast<double>(n)) / 2;
    for (const double factor : {2.5, 5.0, 10.0, 20.0}) {
      const auto bound = static_cast<float>(factor * spacing);
      const float bound2 = dlc::squared_limit(bound);
      std::vector<int32_t> of_tree(n), of_grid(n);
      std::vector<float> d2(n);
      double t[4] = {seconds()};
      for (int64_t i = 0; i < count; i += 64)
        tree.nearest_of_each(&queries[3 * i], std::min<int64_t>(64, count - i), bound2, &of_tree[i], &d2[i]);
      t[1] = seconds();
      const Grid grid(target, bound);
      t[2] = seconds();
      for (int64_t i = 0; i < count; ++i) grid.nearest(&queries[3 * i], bound2, of_grid[i], d2[i]);
      t[3] = seconds();
      const double ns = 1e9 / static_cast<double>(n);
      std::printf("%7zu points, bound %4.1f spacings: tree %4.0f ns to build and %3.0f a query, grid of %5.1f M cells %4.0f and "
                  "%3.0f; answers %s\n",
                  n, factor, built * ns, (t[1] - t[0]) * ns, static_cast<double>(grid.cells()) / 1e6, (t[2] - t[1]) * ns,
                  (t[3] - t[2]) * ns, of_tree == of_grid ? "alike" : "DIFFER");
    }
  }
}
