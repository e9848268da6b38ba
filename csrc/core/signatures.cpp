#include "core/signatures.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/kdtree.hpp"
#include "core/parallel.hpp"

namespace dlc {
namespace {

constexpr std::size_t kFewest = 4;

inline float dot3(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// The angle of (x, y) as a share of a turn, in [0, 1], to 1e-5 (Abramowitz and Stegun 4.4.49): the library's atan2 would
// be half of the work here.
inline float turn(float x, float y) {
  const float ax = std::fabs(x), ay = std::fabs(y);
  const float most = std::max(ax, ay);
  if (most == 0.0f) return 0.0f;
  const float r = std::min(ax, ay) / most, s = r * r;
  float a = r * (0.9998660f + s * (-0.3302995f + s * (0.1801410f + s * (-0.0851330f + s * 0.0208351f)))) * 0.159154943f;
  if (ay > ax) a = 0.25f - a;
  if (x < 0.0f) a = 0.5f - a;
  return y < 0.0f ? 1.0f - a : a;
}

struct Shared {
  int low, high;
  float share;  // of high
};

// Between the centres of bins; beyond the outermost all goes to that.
inline Shared between(float at, int bins) {
  const float f = at > 0.5f ? std::min(at - 0.5f, static_cast<float>(bins - 1)) : 0.0f;  // also where it is not a number
  const int low = static_cast<int>(f);
  return {low, std::min(low + 1, bins - 1), f - static_cast<float>(low)};
}

// The same where the last bin is next to the first. at: in [0, bins].
inline Shared around(float at, int bins) {
  const float f = at + (static_cast<float>(bins) - 0.5f);
  const int low = static_cast<int>(f);
  return {low % bins, (low + 1) % bins, f - static_cast<float>(low)};
}

struct Frame {
  float x[3], y[3], z[3];
};

struct Neighbour {
  float offset[3], distance;  // in radii, so that no square leaves float32's range
  const float* normal;
};

bool frame_of(const std::vector<Neighbour>& near, const float* normal, bool oriented, Frame& frame) {
  float lean[3] = {};
  if (!oriented)
    for (const Neighbour& q : near)
      for (int c = 0; c < 3; ++c) lean[c] += (1.0f - q.distance) * q.offset[c];
  const float sign = dot3(normal, lean) < 0.0f ? -1.0f : 1.0f;
  for (int c = 0; c < 3; ++c) frame.z[c] = sign * normal[c];
  float sum[3] = {};
  for (const Neighbour& q : near) {
    const float height = dot3(q.offset, frame.z), weight = (1.0f - q.distance) * height;
    for (int c = 0; c < 3; ++c) sum[c] += weight * weight * (q.offset[c] - height * frame.z[c]);
  }
  const float length = std::sqrt(dot3(sum, sum));
  if (!(length > 0.0f && std::isfinite(length))) return false;
  for (int c = 0; c < 3; ++c) frame.x[c] = sum[c] / length;
  for (int c = 0; c < 3; ++c) {
    const int i = (c + 1) % 3, j = (c + 2) % 3;
    frame.y[c] = frame.z[i] * frame.x[j] - frame.z[j] * frame.x[i];
  }
  return true;
}

void add(const Neighbour& q, const Frame& frame, bool oriented, int cosines, float* out) {
  const float sine = dot3(q.offset, frame.z) / q.distance;
  float cosine = dot3(q.normal, frame.z);
  if (!oriented) cosine = 2.0f * std::fabs(cosine) - 1.0f;
  const Shared azimuth = around(turn(dot3(q.offset, frame.x), dot3(q.offset, frame.y)) * kAzimuths, kAzimuths);
  const Shared elevation = between((sine + 1.0f) * (0.5f * kElevations), kElevations);
  const Shared shell = between(q.distance * kShells, kShells);
  const Shared bin = between((cosine + 1.0f) * 0.5f * static_cast<float>(cosines), cosines);
  for (int corner = 0; corner < 8; ++corner) {
    const bool a = corner & 1, e = corner & 2, s = corner & 4;
    const int volume = ((a ? azimuth.high : azimuth.low) * kElevations + (e ? elevation.high : elevation.low)) * kShells +
                       (s ? shell.high : shell.low);
    const float weight = (a ? azimuth.share : 1.0f - azimuth.share) * (e ? elevation.share : 1.0f - elevation.share) *
                         (s ? shell.share : 1.0f - shell.share);
    out[volume * cosines + bin.low] += weight * (1.0f - bin.share);
    out[volume * cosines + bin.high] += weight * bin.share;
  }
}

}  // namespace

void signatures(const KdTree& tree, const float* points, const float* normals, int64_t n, float radius, bool oriented,
                float* signatures, int num_threads) {
  const int cosines = oriented ? kCosines : kSignFreeCosines, size = signature_size(oriented);
  std::fill_n(signatures, n * size, 0.0f);
  parallel_for(n, 128, num_threads, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<float, int32_t>> found;
    std::vector<Neighbour> near;
    Frame frame;
    for (int64_t i = begin; i < end; ++i) {
      found.clear();
      tree.radius(points + 3 * i, radius * radius, found);
      near.clear();
      for (const auto& [d2, j] : found) {
        Neighbour q;
        for (int c = 0; c < 3; ++c) q.offset[c] = (points[3 * j + c] - points[3 * i + c]) / radius;
        q.distance = std::sqrt(dot3(q.offset, q.offset));
        q.normal = normals + 3 * j;
        if (q.distance > 0.0f) near.push_back(q);
      }
      if (near.size() < kFewest) continue;
      if (!frame_of(near, normals + 3 * i, oriented, frame)) continue;
      float* row = signatures + i * size;
      for (const Neighbour& q : near) add(q, frame, oriented, cosines, row);
      float square = 0.0f;
      for (int k = 0; k < size; ++k) square += row[k] * row[k];
      const float inverse = square > 0.0f ? 1.0f / std::sqrt(square) : 0.0f;
      for (int k = 0; k < size; ++k) row[k] *= inverse;
    }
  });
}

}  // namespace dlc
