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

// Normal equations of one point's fit in a basis of its tangent plane and the normal, which is eliminated: what is left
// is as well conditioned as the neighbours are spread, whatever the unit of length.
class TangentFit {
 public:
  explicit TangentFit(const double normal[3]) : normal_{normal[0], normal[1], normal[2]} {
    orthogonal_to(normal, u_);
    cross(normal, u_, v_);
  }
  void add(const double way[3], double change) {
    const double u = dot(u_, way), v = dot(v_, way), n = dot(normal_, way);
    uu_ += u * u, uv_ += u * v, vv_ += v * v;
    un_ += u * n, vn_ += v * n, nn_ += n * n;
    du_ += u * change, dv_ += v * change, dn_ += n * change;
  }
  // `held` is the weight of the row normal . g = 0. Its part along the normal is not in the answer.
  void solve(double held, double gradient[3]) const {
    const double nn = nn_ + held * held;
    const double uu = uu_ - un_ * un_ / nn, uv = uv_ - un_ * vn_ / nn, vv = vv_ - vn_ * vn_ / nn;
    const double du = du_ - un_ * dn_ / nn, dv = dv_ - vn_ * dn_ / nn;
    const double trace = uu + vv, determinant = uu * vv - uv * uv;
    double along_u = 0.0, along_v = 0.0;
    if (determinant > kOnOneLine * trace * trace) {
      along_u = (vv * du - uv * dv) / determinant, along_v = (uu * dv - uv * du) / determinant;
    } else if (trace > 0.0) {  // of rank one: its pseudo-inverse is itself over the trace's square
      along_u = (uu * du + uv * dv) / (trace * trace), along_v = (uv * du + vv * dv) / (trace * trace);
    }
    for (int a = 0; a < 3; ++a) gradient[a] = along_u * u_[a] + along_v * v_[a];
  }

 private:
  double normal_[3], u_[3], v_[3];
  double uu_ = 0.0, uv_ = 0.0, vv_ = 0.0, un_ = 0.0, vn_ = 0.0, nn_ = 0.0, du_ = 0.0, dv_ = 0.0, dn_ = 0.0;
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
        fit.solve(count[i] - 1.0, gradient);
      }
      float* const out = intensities_and_gradients + 4 * at[i];
      out[0] = intensities[at[i]];
      for (int a = 0; a < 3; ++a) out[1 + a] = static_cast<float>(gradient[a]);
    }
  });
}

}  // namespace dlc
