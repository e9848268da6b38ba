#include "core/features.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "core/kdtree.hpp"
#include "core/parallel.hpp"
#include "core/simd.hpp"

#if DLC_HAS_AVX2
#include <immintrin.h>
#endif

namespace dlc {
namespace {

constexpr float kPi = 3.14159265358979f;
constexpr float kCoincident = 1e-30f;  // squared distances below it have no finite weight

inline float dot3(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline void cross3(const float* a, const float* b, float* c) {
  c[0] = a[1] * b[2] - a[2] * b[1];
  c[1] = a[2] * b[0] - a[0] * b[2];
  c[2] = a[0] * b[1] - a[1] * b[0];
}
inline int bin(float value, float low, float high) {
  const float b = std::floor(kHistogramBins * (value - low) / (high - low));
  return b > 0.0f ? static_cast<int>(std::min(b, kHistogramBins - 1.0f)) : 0;  // 0 also where it is not a number
}

// Darboux angles of a pair as bins; symmetric in the two points. False where they are undefined.
bool pair_bins(const float* p1, const float* n1, const float* p2, const float* n2_given, bool oriented, int bins[3]) {
  float d[3] = {p2[0] - p1[0], p2[1] - p1[1], p2[2] - p1[2]};
  const float length = std::sqrt(dot3(d, d));
  if (length == 0.0f) return false;
  for (float& x : d) x /= length;
  float turned[3] = {n2_given[0], n2_given[1], n2_given[2]};
  if (!oriented && dot3(n1, turned) < 0)
    for (float& x : turned) x = -x;
  const float a1 = dot3(n1, d), a2 = dot3(turned, d);
  const float *u = n1, *m = turned;
  float phi = a1;
  if (std::fabs(a1) < std::fabs(a2)) {
    std::swap(u, m);
    for (float& x : d) x = -x;
    phi = -a2;
  }
  float v[3], w[3];
  cross3(d, u, v);
  const float v_length = std::sqrt(dot3(v, v));
  if (v_length == 0.0f) return false;
  for (float& x : v) x /= v_length;
  cross3(u, v, w);
  const float range = oriented ? kPi : 0.5f * kPi;
  bins[0] = bin(std::atan2(dot3(w, m), dot3(u, m)), -range, range);
  bins[1] = bin(dot3(v, m), -1.0f, 1.0f);
  bins[2] = bin(phi, -1.0f, 1.0f);
  return true;
}

// Turning both normals mirrors the first and the last histogram and leaves the middle one.
inline int mirrored(int i) {
  const int histogram = i / kHistogramBins, b = i % kHistogramBins;
  return histogram == 1 ? i : histogram * kHistogramBins + kHistogramBins - 1 - b;
}

struct Neighbourhoods {
  std::vector<int64_t> splits;
  std::vector<int32_t> indices;
  std::vector<float> squared_distances;
};

Neighbourhoods neighbourhoods(const KdTree& tree, const float* points, int64_t n, float radius, int num_threads) {
  constexpr int64_t grain = 256;
  const int64_t blocks = (n + grain - 1) / grain;
  std::vector<std::vector<std::pair<float, int32_t>>> found(blocks);
  Neighbourhoods result;
  result.splits.assign(n + 1, 0);
  parallel_for(n, grain, num_threads, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<float, int32_t>> near;
    auto& out = found[begin / grain];
    for (int64_t i = begin; i < end; ++i) {
      near.clear();
      tree.radius(points + 3 * i, radius * radius, near);
      result.splits[i + 1] = static_cast<int64_t>(near.size());
      out.insert(out.end(), near.begin(), near.end());
    }
  });
  for (int64_t i = 0; i < n; ++i) result.splits[i + 1] += result.splits[i];
  result.indices.resize(result.splits[n]);
  result.squared_distances.resize(result.splits[n]);
  int64_t at = 0;
  for (const auto& block : found)
    for (const auto& [d2, index] : block) {
      result.indices[at] = index;
      result.squared_distances[at++] = d2;
    }
  return result;
}

}  // namespace

void fpfh(const KdTree& tree, const float* points, const float* normals, int64_t n, float radius, bool oriented,
          float* features, int num_threads) {
  const Neighbourhoods near = neighbourhoods(tree, points, n, radius, num_threads);
  std::vector<float> simple(n * kFeatureSize, 0.0f);
  parallel_for(n, 128, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* histogram = simple.data() + i * kFeatureSize;
      const int64_t count = near.splits[i + 1] - near.splits[i] - 1;
      if (count < 1) continue;
      const float step = 100.0f / static_cast<float>(count);
      for (int64_t at = near.splits[i]; at < near.splits[i + 1]; ++at) {
        const int64_t j = near.indices[at];
        int bins[3];
        if (j == i || !pair_bins(points + 3 * i, normals + 3 * i, points + 3 * j, normals + 3 * j, oriented, bins))
          continue;
        for (int h = 0; h < 3; ++h) histogram[h * kHistogramBins + bins[h]] += step;
      }
    }
  });
  parallel_for(n, 128, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* normal = normals + 3 * i;
      float sum[kFeatureSize] = {}, flipped[kFeatureSize] = {};
      float side = 0.0f;
      for (int64_t at = near.splits[i]; at < near.splits[i + 1]; ++at) {
        const int64_t j = near.indices[at];
        const float d2 = near.squared_distances[at];
        if (j == i || d2 < kCoincident) continue;
        const float* histogram = simple.data() + j * kFeatureSize;
        float* into = !oriented && dot3(normal, normals + 3 * j) < 0 ? flipped : sum;
        const float weight = 1.0f / d2;
        for (int b = 0; b < kFeatureSize; ++b) into[b] += weight * histogram[b];
        const float* q = points + 3 * j;
        const float d[3] = {q[0] - points[3 * i], q[1] - points[3 * i + 1], q[2] - points[3 * i + 2]};
        side += dot3(normal, d);
      }
      for (int b = 0; b < kFeatureSize; ++b) sum[b] += flipped[mirrored(b)];
      float* out = features + i * kFeatureSize;
      for (int h = 0; h < 3; ++h) {
        float total = 0.0f;
        for (int b = 0; b < kHistogramBins; ++b) total += sum[h * kHistogramBins + b];
        const float scale = total > 0.0f ? 100.0f / total : 0.0f;
        for (int b = 0; b < kHistogramBins; ++b) sum[h * kHistogramBins + b] *= scale;
      }
      const float* own = simple.data() + i * kFeatureSize;
      const bool flip = !oriented && side < 0.0f;
      for (int b = 0; b < kFeatureSize; ++b) out[flip ? mirrored(b) : b] = sum[b] + own[b];
    }
  });
}

namespace {

constexpr int kRows = 4, kLanes = 16;

// best[r] over one tile of 16 columns: score = a.b - |b|^2 / 2, the largest is the nearest.
void tile_scalar(const float* a, const float* b, int size, float* scores) {
  for (int r = 0; r < kRows; ++r)
    for (int l = 0; l < kLanes; ++l) {
      float s = 0.0f;
      for (int d = 0; d < size; ++d) s += a[r * size + d] * b[d * kLanes + l];
      scores[r * kLanes + l] = s;
    }
}

#if DLC_HAS_AVX2
__attribute__((target("avx2,fma"))) void tile_avx2(const float* a, const float* b, int size, float* scores) {
  __m256 s[kRows][2];
  for (auto& row : s) row[0] = row[1] = _mm256_setzero_ps();
  for (int d = 0; d < size; ++d) {
    const __m256 b0 = _mm256_loadu_ps(b + d * kLanes), b1 = _mm256_loadu_ps(b + d * kLanes + 8);
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_set1_ps(a[r * size + d]);
      s[r][0] = _mm256_fmadd_ps(x, b0, s[r][0]);
      s[r][1] = _mm256_fmadd_ps(x, b1, s[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(scores + r * kLanes, s[r][0]);
    _mm256_storeu_ps(scores + r * kLanes + 8, s[r][1]);
  }
}
#endif

auto choose_tile() {
#if DLC_HAS_AVX2
  if (use_avx2() && __builtin_cpu_supports("fma")) return tile_avx2;
#endif
  return tile_scalar;
}

}  // namespace

void nearest_features(const float* a, int64_t n, const float* b, int64_t m, int size, int64_t* indices,
                      float* squared_distances, int num_threads) {
  if (m == 0) {
    std::fill_n(indices, n, int64_t(-1));
    std::fill_n(squared_distances, n, std::numeric_limits<float>::infinity());
    return;
  }
  const auto tile = choose_tile();
  const int64_t tiles = (m + kLanes - 1) / kLanes;
  std::vector<float> columns(tiles * kLanes * size, 0.0f), half_norms(tiles * kLanes, std::numeric_limits<float>::max());
  for (int64_t j = 0; j < m; ++j) {
    float norm = 0.0f;
    for (int d = 0; d < size; ++d) {
      const float x = b[j * size + d];
      columns[(j / kLanes) * kLanes * size + d * kLanes + j % kLanes] = x;
      norm += x * x;
    }
    half_norms[j] = 0.5f * norm;
  }
  parallel_for(n, 64, num_threads, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(kRows * size);
    float scores[kRows * kLanes], best[kRows][kLanes];
    int64_t where[kRows][kLanes];
    for (int64_t i = begin; i < end; i += kRows) {
      const int64_t count = std::min<int64_t>(kRows, end - i);
      std::fill(rows.begin(), rows.end(), 0.0f);
      std::memcpy(rows.data(), a + i * size, sizeof(float) * count * size);
      for (int r = 0; r < kRows; ++r)
        for (int l = 0; l < kLanes; ++l) best[r][l] = -std::numeric_limits<float>::max(), where[r][l] = 0;
      for (int64_t t = 0; t < tiles; ++t) {
        tile(rows.data(), columns.data() + t * kLanes * size, size, scores);
        for (int r = 0; r < kRows; ++r)
          for (int l = 0; l < kLanes; ++l) {
            const float s = scores[r * kLanes + l] - half_norms[t * kLanes + l];
            const bool better = s > best[r][l];
            best[r][l] = better ? s : best[r][l];
            where[r][l] = better ? t : where[r][l];
          }
      }
      for (int64_t r = 0; r < count; ++r) {
        float top = -std::numeric_limits<float>::max();
        int64_t index = 0;
        for (int l = 0; l < kLanes; ++l) {
          const int64_t j = where[r][l] * kLanes + l;
          if (best[r][l] > top || (best[r][l] == top && j < index)) top = best[r][l], index = j;
        }
        float d2 = 0.0f;
        for (int d = 0; d < size; ++d) {
          const float x = a[(i + r) * size + d] - b[index * size + d];
          d2 += x * x;
        }
        indices[i + r] = index;
        squared_distances[i + r] = d2;
      }
    }
  });
}

}  // namespace dlc
