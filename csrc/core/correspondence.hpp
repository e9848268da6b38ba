// One correspondence of a linearisation, from the clouds to the sums of residuals.hpp, for host and device.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/residuals.hpp"

namespace dlc {

struct Pose {
  DLC_HD explicit Pose(const double* t) {  // (4, 4)
    for (int r = 0; r < 3; ++r) {
      for (int c = 0; c < 3; ++c) rotation[3 * r + c] = t[4 * r + c];
      translation[r] = t[4 * r + 3];
    }
  }
  DLC_HD void rotate(const float* v, double out[3]) const {
    for (int r = 0; r < 3; ++r) out[r] = rotation[3 * r] * v[0] + rotation[3 * r + 1] * v[1] + rotation[3 * r + 2] * v[2];
  }
  DLC_HD void apply(const float* v, double out[3]) const {
    rotate(v, out);
    for (int r = 0; r < 3; ++r) out[r] += translation[r];
  }
  double rotation[9], translation[3];
};

struct CorrespondingClouds {  // what a kind does not use may be null
  const float* source;              // (n, 3)
  const float* source_normals;      // (n, 3), in the source's own frame, like the covariances
  const float* source_covariances;  // (n, 6) xx xy xz yy yz zz
  const float* target;              // (m, 3)
  const float* target_normals;      // (m, 3)
  const float* target_covariances;  // (m, 6)
  const float* source_intensities = nullptr;  // (n)
  const float* target_intensities = nullptr;  // (m, 4): intensity, and its gradient along the surface
  double lambda_geometric = 1.0;              // share of the geometric residual, of the colored kind
};

DLC_HD void widen(const float* from, int n, double* to) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}

// Adds source point i, which the pose moves to p, and target point j. Returns |p - q|^2.
template <Kind kind>
DLC_HD double add_correspondence(const CorrespondingClouds& clouds, const Pose& pose, Kernel kernel, double parameter,
                                 int64_t i, int64_t j, const double p[3], double* sums) {
  double q[3], distance2 = 0.0;
  widen(clouds.target + 3 * j, 3, q);
  for (int a = 0; a < 3; ++a) {
    distance2 += (p[a] - q[a]) * (p[a] - q[a]);
    sums[kSourceSum + a] += p[a];
    sums[kTargetSum + a] += q[a];
  }
  sums[kCount] += 1.0;
  sums[kSquaredDistance] += distance2;
  if constexpr (kind == Kind::kPointToPoint) {
    add_point_to_point(kernel, parameter, p, q, sums);
  } else if constexpr (kind == Kind::kPointToPlane) {
    double normal[3];
    widen(clouds.target_normals + 3 * j, 3, normal);
    add_point_to_plane(kernel, parameter, p, q, normal, sums);
  } else if constexpr (kind == Kind::kSymmetric) {
    double source_normal[3], target_normal[3];
    pose.rotate(clouds.source_normals + 3 * i, source_normal);
    widen(clouds.target_normals + 3 * j, 3, target_normal);
    add_symmetric(kernel, parameter, p, q, source_normal, target_normal, sums);
  } else if constexpr (kind == Kind::kColored) {
    double normal[3], intensities[4];
    widen(clouds.target_normals + 3 * j, 3, normal);
    widen(clouds.target_intensities + 4 * j, 4, intensities);
    const double source_intensity = clouds.source_intensities[i];
    add_colored(kernel, parameter, clouds.lambda_geometric, p, q, normal, source_intensity, intensities, sums);
  } else {
    double source_covariance[6], covariance[6];
    widen(clouds.source_covariances + 6 * i, 6, source_covariance);
    rotate_symmetric3(pose.rotation, source_covariance, covariance);
    for (int a = 0; a < 6; ++a) covariance[a] += clouds.target_covariances[6 * j + a];
    add_generalized(kernel, parameter, p, q, covariance, sums);
  }
  return distance2;
}

}  // namespace dlc
