#include "core/intensities.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/kdtree.hpp"
#include "core/linalg.hpp"
#include "core/morton.hpp"

namespace dlc {
namespace {

constexpr double kOnOneLine = 1e-6;  // of the spreads' product over their sum's square: one a thousandth of the other

// In a basis of the tangent plane, where the normal's constraint holds by itself whatever the unit of length.
class TangentFit {
 public:
  explicit TangentFit(const double normal[3]) {
    orthogonal_to(normal, u_);
    cross(normal, u_, v_);
  }
  void add(const double way[3], double change) {
    const double u = dot(u_, way), v = dot(v_, way);
    uu_ += u * u, uv_ += u * v, vv_ += v * v;
    du_ += u * change, dv_ += v * change;
  }
  void solve(double gradient[3]) const {
    const double trace = uu_ + vv_, determinant = uu_ * vv_ - uv_ * uv_;
    double along_u = 0.0, along_v = 0.0;
    if (determinant > kOnOneLine * trace * trace) {
      along_u = (vv_ * du_ - uv_ * dv_) / determinant, along_v = (uu_ * dv_ - uv_ * du_) / determinant;
    } else if (trace > 0.0) {  // of rank one: its pseudo-inverse is itself over the trace's square
      along_u = (uu_ * du_ + uv_ * dv_) / (trace * trace), along_v = (uv_ * du_ + vv_ * dv_) / (trace * trace);
    }
    for (int a = 0; a < 3; ++a) gradient[a] = along_u * u_[a] + along_v * v_[a];
  }

 private:
  double u_[3], v_[3];
  double uu_ = 0.0, uv_ = 0.0, vv_ = 0.0, du_ = 0.0, dv_ = 0.0;
};

}  // namespace

void intensity_gradients(const KdTree& tree, const float* intensities, const float* normals, int k, float max_distance,
                         float* intensities_and_gradients, int num_threads) {
  const int64_t n = tree.size();
  const int room = static_cast<int>(std::clamp<int64_t>(k, 0, n));
  const float limit = squared_limit(max_distance);
  if (n == 0) return;
  for_each_run(tree.point(0), n, num_threads, [&](const float* near, const int64_t* at, int64_t run) {
    thread_local std::vector<int32_t> index;
    thread_local std::vector<float> d2;
    int count[kRun];
    index.resize(static_cast<std::size_t>(run * room));
    d2.resize(static_cast<std::size_t>(run * room));
    tree.knn_of_each(near, run, room, limit, index.data(), d2.data(), count);
    for (int64_t i = 0; i < run; ++i) {
      const float* const own_normal = normals + 3 * at[i];
      const double own = intensities[at[i]];
      double normal[3] = {own_normal[0], own_normal[1], own_normal[2]}, gradient[3] = {};
      const double length = std::sqrt(dot(normal, normal));
      if (count[i] >= kLeastIntensityNeighbours && length != 0.0) {
        for (double& x : normal) x /= length;
        TangentFit fit(normal);
        for (int j = 0; j < count[i]; ++j) {
          const int32_t neighbour = index[static_cast<std::size_t>(i * room + j)];
          const float* const point = tree.point(neighbour);
          double way[3];
          for (int a = 0; a < 3; ++a) way[a] = static_cast<double>(point[a]) - near[3 * i + a];
          fit.add(way, intensities[neighbour] - own);
        }
        fit.solve(gradient);
      }
      float* const out = intensities_and_gradients + 4 * at[i];
      out[0] = intensities[at[i]];
      for (int a = 0; a < 3; ++a) out[1 + a] = static_cast<float>(gradient[a]);
    }
  });
}

}  // namespace dlc
