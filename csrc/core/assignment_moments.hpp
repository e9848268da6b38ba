// The expectation-maximisation step of a soft assignment from its shares, for host and device.
#pragma once
#include "core/linalg.hpp"

namespace dlc {

constexpr double kNoMass = 1e-19;  // shares that sum to less say nothing about the pose

// Sums of share-weighted points about the clouds' centres.
struct ShareMoments {
  double mass, p[3], q[3], qp[9];

  DLC_HD ShareMoments() : mass(0), p{0, 0, 0}, q{0, 0, 0}, qp{0, 0, 0, 0, 0, 0, 0, 0, 0} {}

  DLC_HD void add(const ShareMoments& other) {
    mass += other.mass;
    for (int r = 0; r < 3; ++r) p[r] += other.p[r], q[r] += other.q[r];
    for (int r = 0; r < 9; ++r) qp[r] += other.qp[r];
  }
  // weight * (shares sum, shares times q) of one source point
  DLC_HD void add_row(double weight, double share, const double share_q[3], const double point[3]) {
    mass += weight * share;
    for (int r = 0; r < 3; ++r) {
      q[r] += weight * share_q[r];
      p[r] += weight * share * point[r];
      for (int c = 0; c < 3; ++c) qp[3 * r + c] += weight * share_q[r] * point[c];
    }
  }
  DLC_HD void add_column(double weight, double share, const double share_p[3], const double point[3]) {
    mass += weight * share;
    for (int r = 0; r < 3; ++r) {
      p[r] += weight * share_p[r];
      q[r] += weight * share * point[r];
      for (int c = 0; c < 3; ++c) qp[3 * r + c] += weight * point[r] * share_p[c];
    }
  }
};

// The weighted Procrustes fit, between the clouds as they are; the identity without mass.
DLC_HD void fit_pose(const ShareMoments& moments, const double source_center[3], const double target_center[3],
                     double pose[16]) {
  double rotation[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1}, translation[3] = {0, 0, 0};
  if (!(moments.mass <= kNoMass)) {
    procrustes(moments.mass, moments.p, moments.q, moments.qp, rotation, translation);
    for (int r = 0; r < 3; ++r) translation[r] += target_center[r] - dot(rotation + 3 * r, source_center);
  }
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 3; ++c) pose[4 * r + c] = rotation[3 * r + c];
    pose[4 * r + 3] = translation[r];
    pose[12 + r] = 0.0;
  }
  pose[15] = 1.0;
}

}  // namespace dlc
