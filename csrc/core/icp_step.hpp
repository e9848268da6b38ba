// One step of classical ICP from the sums of a linearisation, for host and device.
#pragma once
#include <cmath>

#include "core/residuals.hpp"

namespace dlc {

constexpr double kDamping = 1e-9;  // relative to the curvatures, where the correspondences leave a motion free

// Rz(x2) Ry(x1) Rx(x0), then the translation x3..5: the chart in which Open3D applies a step.
DLC_HD void euler_motion(const double x[6], double out[16]) {
  const double sx = std::sin(x[0]), cx = std::cos(x[0]), sy = std::sin(x[1]), cy = std::cos(x[1]);
  const double sz = std::sin(x[2]), cz = std::cos(x[2]);
  const double motion[16] = {cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx, x[3],
                             sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx, x[4],
                             -sy,     cy * sx,                cy * cx,                x[5],
                             0,       0,                      0,                      1};
  for (int i = 0; i < 16; ++i) out[i] = motion[i];
}

DLC_HD void procrustes_motion(const double* sums, double out[16]) {
  double rotation[9], translation[3];
  procrustes(sums[0], sums + 1, sums + 4, sums + 7, rotation, translation);
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 3; ++c) out[4 * r + c] = rotation[3 * r + c];
    out[4 * r + 3] = translation[r];
  }
}

// The Gauss-Newton step. Free motions are left alone, as the least solution does, by damping the others hardly at all.
DLC_HD bool gauss_newton(const double* sums, double x[6]) {
  double h[21], b[6];
  for (int i = 0; i < 6; ++i) b[i] = -sums[kGradient + i];
  for (int i = 0; i < 21; ++i) h[i] = sums[kHessian + i];
  if (ldlt6(h, b, x)) return true;
  const double turning = kDamping * (h[0] + h[6] + h[11]), moving = kDamping * (h[15] + h[18] + h[20]);
  h[0] += turning, h[6] += turning, h[11] += turning;
  h[15] += moving, h[18] += moving, h[20] += moving;
  return ldlt6(h, b, x);
}

// One step after `pose`; false where there is none.
DLC_HD bool icp_step(Kind kind, const double* sums, const double pose[16], double next[16]) {
  double motion[16], x[6];
  if (kind == Kind::kPointToPoint) {
    procrustes_motion(sums, motion);
  } else {
    if (!gauss_newton(sums, x)) return false;
    euler_motion(x, motion);
  }
  double total = 0.0;
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 4; ++c) {
      double entry = c == 3 ? motion[4 * r + 3] : 0.0;
      for (int k = 0; k < 3; ++k) entry += motion[4 * r + k] * pose[4 * k + c];
      next[4 * r + c] = entry;
      total += entry;
    }
  return std::fabs(total) < HUGE_VAL;
}

}  // namespace dlc
