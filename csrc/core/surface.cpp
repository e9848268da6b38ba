#include "core/surface.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/linalg.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr int64_t kMaxCells = int64_t(1) << 24;
constexpr float kMaxBins = 2048.0f;  // along an edge of the cube

inline float dot3(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

inline void transform(const double pose[16], const float* p, float out[3]) {
  for (int r = 0; r < 3; ++r)
    out[r] = static_cast<float>(pose[4 * r] * p[0] + pose[4 * r + 1] * p[1] + pose[4 * r + 2] * p[2] + pose[4 * r + 3]);
}

inline void rotate(const double pose[16], const float* n, float out[3]) {
  for (int r = 0; r < 3; ++r)
    out[r] = static_cast<float>(pose[4 * r] * n[0] + pose[4 * r + 1] * n[1] + pose[4 * r + 2] * n[2]);
}

void invert_rigid(const double pose[16], double out[16]) {
  for (int r = 0; r < 3; ++r) {
    out[4 * r + 3] = 0.0;
    for (int c = 0; c < 3; ++c) {
      out[4 * r + c] = pose[4 * c + r];
      out[4 * r + 3] -= pose[4 * c + r] * pose[4 * c + 3];
    }
  }
  out[12] = out[13] = out[14] = 0.0;
  out[15] = 1.0;
}

// Every n / samples-th point: clouds come in Morton order, so this spreads evenly in space.
inline int64_t sample(int64_t k, int64_t samples, int64_t n) { return samples >= n ? k : k * n / samples; }

inline bool agree(const float* a, const float* b, float cosine, bool oriented) {
  const float c = dot3(a, b);
  return (oriented ? c : std::fabs(c)) > cosine;
}

}  // namespace

NearestGrid::NearestGrid(const float* points, int64_t n, float cell, float reach) {
  if (!(cell > 0.0f && std::isfinite(cell) && reach > 0.0f && std::isfinite(reach)))
    throw std::invalid_argument("cell and reach must be positive and finite in float32");
  std::array<float, 3> high;
  low_.fill(std::numeric_limits<float>::max());
  high.fill(-std::numeric_limits<float>::max());
  for (int64_t i = 0; i < n; ++i)
    for (int a = 0; a < 3; ++a) {
      low_[a] = std::min(low_[a], points[3 * i + a]);
      high[a] = std::max(high[a], points[3 * i + a]);
    }
  if (n == 0) low_.fill(0.0f), high.fill(0.0f);
  for (int a = 0; a < 3; ++a) {
    low_[a] -= reach, high[a] += reach;
    if (!std::isfinite(high[a] - low_[a])) throw std::invalid_argument("the points reach further than float32 does");
  }
  cell = std::max(cell, std::numeric_limits<float>::min());
  for (;; cell *= 1.25f) {
    double cells = 1.0;
    for (int a = 0; a < 3; ++a) cells *= std::floor((double(high[a]) - low_[a]) / cell) + 1.0;
    if (cells <= static_cast<double>(kMaxCells)) break;
  }
  for (int a = 0; a < 3; ++a) size_[a] = static_cast<int64_t>((double(high[a]) - low_[a]) / cell) + 1;
  inverse_cell_ = 1.0f / cell;
  cells_.assign(size_[0] * size_[1] * size_[2], -1);
  std::vector<float> nearest(cells_.size(), std::numeric_limits<float>::max());
  // Where the coordinates are so large that the reach is lost to rounding, it may be any number of cells.
  const auto span = static_cast<int64_t>(std::min(std::ceil(reach / cell), static_cast<float>(kMaxCells)));
  for (int64_t i = 0; i < n; ++i) {
    const float* p = points + 3 * i;
    int64_t at[3];
    for (int a = 0; a < 3; ++a) at[a] = static_cast<int64_t>((p[a] - low_[a]) * inverse_cell_);
    for (int64_t x = std::max<int64_t>(0, at[0] - span); x <= std::min(size_[0] - 1, at[0] + span); ++x)
      for (int64_t y = std::max<int64_t>(0, at[1] - span); y <= std::min(size_[1] - 1, at[1] + span); ++y)
        for (int64_t z = std::max<int64_t>(0, at[2] - span); z <= std::min(size_[2] - 1, at[2] + span); ++z) {
          const float d[3] = {low_[0] + (x + 0.5f) * cell - p[0], low_[1] + (y + 0.5f) * cell - p[1],
                              low_[2] + (z + 0.5f) * cell - p[2]};
          const float d2 = dot3(d, d);
          const int64_t c = (x * size_[1] + y) * size_[2] + z;
          if (d2 < nearest[c]) nearest[c] = d2, cells_[c] = static_cast<int32_t>(i);
        }
  }
}

DepthMap::DepthMap(const float* points, int64_t n, const std::array<float, 3>& eye, float bin_angle) : eye_(eye) {
  size_ = std::max(1, static_cast<int>(std::min(kMaxBins, std::ceil(1.57079633f / bin_angle))));
  inverse_bin_ = static_cast<float>(size_) / 1.57079633f;
  const float far = std::numeric_limits<float>::infinity();
  std::vector<float> raw(6 * size_ * size_, far);
  for (int64_t i = 0; i < n; ++i) {
    int face, u, v;
    float depth;
    if (!locate(points + 3 * i, face, u, v, depth)) continue;
    float& cell = raw[(face * size_ + u) * size_ + v];
    cell = std::min(cell, depth);
  }
  depth_.assign(raw.size(), far);
  for (int face = 0; face < 6; ++face)
    for (int u = 0; u < size_; ++u)
      for (int v = 0; v < size_; ++v)
        for (int du = -1; du <= 1; ++du)
          for (int dv = -1; dv <= 1; ++dv) {
            const int x = u + du, y = v + dv;
            if (x < 0 || y < 0 || x >= size_ || y >= size_) continue;
            float& cell = depth_[(face * size_ + u) * size_ + v];
            cell = std::min(cell, raw[(face * size_ + x) * size_ + y]);
          }
}

bool DepthMap::locate(const float q[3], int& face, int& u, int& v, float& depth) const {
  const float d[3] = {q[0] - eye_[0], q[1] - eye_[1], q[2] - eye_[2]};
  depth = std::sqrt(dot3(d, d));
  if (!(depth > 0.0f && std::isfinite(depth))) return false;
  int axis = 0;
  for (int a = 1; a < 3; ++a)
    if (std::fabs(d[a]) > std::fabs(d[axis])) axis = a;
  face = 2 * axis + (d[axis] < 0);
  const float s = 1.0f / std::fabs(d[axis]);
  constexpr float quarter = 0.785398163f;
  u = std::min(size_ - 1, static_cast<int>((std::atan(d[(axis + 1) % 3] * s) + quarter) * inverse_bin_));
  v = std::min(size_ - 1, static_cast<int>((std::atan(d[(axis + 2) % 3] * s) + quarter) * inverse_bin_));
  return true;
}

bool DepthMap::clearance(const float q[3], float& depth) const {
  int face, u, v;
  float own;
  if (!locate(q, face, u, v, own)) return false;
  const float seen = depth_[(face * size_ + u) * size_ + v];
  depth = seen - own;
  return std::isfinite(seen);
}

Surface::Surface(const float* given_points, const float* given_normals, int64_t n, float cell, float reach)
    : points(given_points, given_points + 3 * n),
      normals(given_normals, given_normals + 3 * n),
      grid(given_points, n, cell, reach) {}

namespace {

struct OneWay {
  double overlap = 0.0, closeness = 0.0;
  int64_t violations = 0, seen = 0;
};

OneWay judge(const Surface& moving, const Surface& fixed, const double pose[16], const JudgeOptions& o) {
  OneWay result;
  const int64_t n = std::min(o.samples, moving.size());
  int64_t inside = 0;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t i = sample(k, n, moving.size());
    float q[3], normal[3];
    transform(pose, moving.points.data() + 3 * i, q);
    const int32_t j = fixed.grid.nearest(q);
    if (j >= 0) {
      const float* f = fixed.points.data() + 3 * j;
      const float d[3] = {q[0] - f[0], q[1] - f[1], q[2] - f[2]};
      const float d2 = dot3(d, d);
      if (d2 < o.distance * o.distance) {
        rotate(pose, moving.normals.data() + 3 * i, normal);
        if (agree(normal, fixed.normals.data() + 3 * j, o.normal_cosine, o.oriented)) {
          ++inside;
          result.closeness += 1.0 - d2 / (o.distance * o.distance);
        }
      }
    }
    float clear;
    if (!fixed.depth_maps.empty() && fixed.depth_maps[0].clearance(q, clear)) {
      ++result.seen;
      result.violations += clear > o.free_margin;
    }
  }
  result.overlap = n ? static_cast<double>(inside) / static_cast<double>(n) : 0.0;
  result.closeness = inside ? result.closeness / static_cast<double>(inside) : 0.0;
  return result;
}

bool refine(const Surface& source, const Surface& target, double pose[16], const RefineOptions& o) {
  const int64_t n = std::min(o.samples, source.size());
  for (int it = 0; it < o.iterations; ++it) {
    const float share = o.iterations > 1 ? static_cast<float>(it) / (o.iterations - 1) : 1.0f;
    const float distance = o.first_distance * std::pow(o.last_distance / o.first_distance, share);
    double h[21] = {}, b[6] = {};
    int64_t inside = 0;
    for (int64_t k = 0; k < n; ++k) {
      const int64_t i = sample(k, n, source.size());
      float q[3], normal[3];
      transform(pose, source.points.data() + 3 * i, q);
      const int32_t j = target.grid.nearest(q);
      if (j < 0) continue;
      const float *f = target.points.data() + 3 * j, *m = target.normals.data() + 3 * j;
      const float d[3] = {q[0] - f[0], q[1] - f[1], q[2] - f[2]};
      if (dot3(d, d) >= distance * distance) continue;
      rotate(pose, source.normals.data() + 3 * i, normal);
      if (!agree(normal, m, o.normal_cosine, o.oriented)) continue;
      ++inside;
      const double residual = dot3(d, m);
      const double jacobian[6] = {double(q[1]) * m[2] - double(q[2]) * m[1], double(q[2]) * m[0] - double(q[0]) * m[2],
                                  double(q[0]) * m[1] - double(q[1]) * m[0], m[0], m[1], m[2]};
      int at = 0;
      for (int r = 0; r < 6; ++r) {
        for (int c = r; c < 6; ++c) h[at++] += jacobian[r] * jacobian[c];
        b[r] -= jacobian[r] * residual;
      }
    }
    if (inside < 6) return false;
    // A little damping holds the directions that the surfaces leave free (a plane slides).
    double trace_r = h[0] + h[6] + h[11], trace_t = h[15] + h[18] + h[20];
    for (int r : {0, 6, 11}) h[r] += 1e-4 * trace_r;
    for (int r : {15, 18, 20}) h[r] += 1e-4 * trace_t;
    double xi[6], step[16], moved[16];
    if (!ldlt6(h, b, xi)) return false;
    se3_exp(xi, step);
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 4; ++c)
        moved[4 * r + c] = step[4 * r] * pose[c] + step[4 * r + 1] * pose[4 + c] + step[4 * r + 2] * pose[8 + c] +
                           (c == 3 ? step[4 * r + 3] : 0.0);
    if (!std::all_of(moved, moved + 12, [](double x) { return std::isfinite(x); })) return false;
    std::copy(moved, moved + 12, pose);
  }
  return true;
}

}  // namespace

void judge_poses(const Surface& source, const Surface& target, const double* poses, int64_t n_poses,
                 const JudgeOptions& options, double* out, int num_threads) {
  parallel_for(n_poses, 4, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double inverse[16];
      invert_rigid(poses + 16 * k, inverse);
      const OneWay forward = judge(source, target, poses + 16 * k, options);
      const OneWay backward = judge(target, source, inverse, options);
      const int64_t seen = forward.seen + backward.seen;
      out[4 * k] = forward.overlap;
      out[4 * k + 1] = backward.overlap;
      out[4 * k + 2] = seen ? static_cast<double>(forward.violations + backward.violations) / static_cast<double>(seen) : -1.0;
      out[4 * k + 3] = 0.5 * (forward.closeness + backward.closeness);
    }
  });
}

void refine_poses(const Surface& source, const Surface& target, double* poses, int64_t n_poses,
                  const RefineOptions& options, int num_threads) {
  parallel_for(n_poses, 1, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      double pose[16];
      std::copy(poses + 16 * k, poses + 16 * k + 16, pose);
      if (refine(source, target, pose, options)) std::copy(pose, pose + 16, poses + 16 * k);
    }
  });
}

}  // namespace dlc
