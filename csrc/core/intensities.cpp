#include "core/intensities.hpp"

#include <cmath>

#include "core/linalg.hpp"
#include "core/neighbours.hpp"

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
  if (tree.size() == 0) return;
  const auto differentiate = [&](int64_t at, const float* point, const Neighbours& near) {
    const float* const own_normal = normals + 3 * at;
    const double own = intensities[at];
    double normal[3] = {own_normal[0], own_normal[1], own_normal[2]}, gradient[3] = {};
    const double length = std::sqrt(dot(normal, normal));
    if (near.count >= kLeastIntensityNeighbours && length != 0.0) {
      for (double& x : normal) x /= length;
      TangentFit fit(normal);
      for (int j = 0; j < near.count; ++j) {
        const float* const neighbour = tree.point(near.index[j]);
        double way[3];
        for (int a = 0; a < 3; ++a) way[a] = static_cast<double>(neighbour[a]) - point[a];
        fit.add(way, intensities[near.index[j]] - own);
      }
      fit.solve(near.count - 1.0, gradient);
    }
    float* const out = intensities_and_gradients + 4 * at;
    out[0] = intensities[at];
    for (int a = 0; a < 3; ++a) out[1 + a] = static_cast<float>(gradient[a]);
  };
  for_each_neighbourhood(tree, tree.point(0), tree.size(), k, max_distance, num_threads, differentiate);
}

}  // namespace dlc
