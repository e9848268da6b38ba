// What one correspondence contributes to the normal equations: residual, Jacobian and robust weight, for host and device.
// p is the source point moved by the current pose, q the target point; xi = (rotation, translation) updates the pose on
// the left, so that dp/dxi = [-hat(p), I]. Formulas and robust weights are those of Open3D 0.20's legacy estimations.
#pragma once
#include "core/linalg.hpp"

namespace dlc {

enum class Kind { kPointToPoint = 0, kPointToPlane = 1, kSymmetric = 2, kGeneralized = 3, kColored = 4 };
enum class Kernel { kL2 = 0, kL1 = 1, kHuber = 2, kCauchy = 3, kGemanMcClure = 4, kTukey = 5 };

// Layout of the sums. Point-to-point replaces the normal equations by moments: [0] sum w, [1:4] sum w p, [4:7] sum w q,
// [7:16] sum w q p^T row-major, [16] sum w |p|^2, [17] sum w |q|^2.
constexpr int kHessian = 0;          // 21: upper triangle of sum w J^T J, row by row
constexpr int kGradient = 21;        // 6: sum w J^T r
constexpr int kCost = 27;            // sum rho(r)
constexpr int kCount = 28;           // correspondences
constexpr int kSquaredDistance = 29; // sum |p - q|^2
constexpr int kSourceSum = 30;       // 3: sum p, unweighted
constexpr int kTargetSum = 33;       // 3: sum q, unweighted
constexpr int kSums = 36;

constexpr double kLeastL1Residual = 1e-12;  // L1's weight 1 / |r| has no finite value at 0

// rho'(r) / r.
DLC_HD double robust_weight(Kernel kernel, double k, double r) {
  const double size = std::fabs(r);
  switch (kernel) {
    case Kernel::kL1:
      return 1.0 / (size > kLeastL1Residual ? size : kLeastL1Residual);
    case Kernel::kHuber:
      return size > k ? k / size : 1.0;
    case Kernel::kCauchy:
      return 1.0 / (1.0 + (r / k) * (r / k));
    case Kernel::kGemanMcClure:
      return k / ((k + r * r) * (k + r * r));
    case Kernel::kTukey: {
      const double inside = 1.0 - (r / k) * (r / k);
      return size > k ? 0.0 : inside * inside;
    }
    default:
      return 1.0;
  }
}

// rho(r), zero at zero.
DLC_HD double robust_cost(Kernel kernel, double k, double r) {
  const double size = std::fabs(r), ratio = r / k;
  switch (kernel) {
    case Kernel::kL1:
      return size;
    case Kernel::kHuber:
      return size > k ? k * (size - 0.5 * k) : 0.5 * r * r;
    case Kernel::kCauchy:
      return 0.5 * k * k * std::log1p(ratio * ratio);
    case Kernel::kGemanMcClure:
      return 0.5 * r * r / (k + r * r);
    case Kernel::kTukey: {
      const double inside = 1.0 - ratio * ratio;
      return k * k / 6.0 * (size > k ? 1.0 : 1.0 - inside * inside * inside);
    }
    default:
      return 0.5 * r * r;
  }
}

// One scalar residual r = direction . (...) whose Jacobian is [lever x direction, direction].
template <class Real>
DLC_HD void add_row(const Real lever[3], const Real direction[3], const Real& r, const Real& weight, Real* sums) {
  Real j[6];
  cross(lever, direction, j);
  for (int i = 0; i < 3; ++i) j[3 + i] = direction[i];
  Real* h = sums + kHessian;
  for (int row = 0; row < 6; ++row) {
    const Real wj = weight * j[row];
    for (int col = row; col < 6; ++col) *h++ += wj * j[col];
    sums[kGradient + row] += wj * r;
  }
}

template <class Real>
DLC_HD void add_robust_row(Kernel kernel, double k, const Real lever[3], const Real direction[3], const Real& r,
                           Real* sums) {
  add_row(lever, direction, r, robust_weight(kernel, k, r), sums);
  sums[kCost] += robust_cost(kernel, k, r);
}

// The residual is the vector p - q, weighted by its length.
template <class Real>
DLC_HD void add_point_to_point(Kernel kernel, double k, const Real p[3], const Real q[3], Real* sums) {
  const Real d[3] = {p[0] - q[0], p[1] - q[1], p[2] - q[2]};
  const Real length = square_root(dot(d, d));
  const Real w = robust_weight(kernel, k, length);
  sums[0] += w;
  for (int r = 0; r < 3; ++r) {
    sums[1 + r] += w * p[r];
    sums[4 + r] += w * q[r];
    for (int c = 0; c < 3; ++c) sums[7 + 3 * r + c] += w * q[r] * p[c];
  }
  sums[16] += w * dot(p, p);
  sums[17] += w * dot(q, q);
  sums[kCost] += robust_cost(kernel, k, length);
}

// r = (p - q) . n (Chen and Medioni, 1992).
template <class Real>
DLC_HD void add_point_to_plane(Kernel kernel, double k, const Real p[3], const Real q[3], const Real normal[3],
                               Real* sums) {
  const Real d[3] = {p[0] - q[0], p[1] - q[1], p[2] - q[2]};
  add_robust_row(kernel, k, p, normal, dot(d, normal), sums);
}

// sqrt(share) (p - q) . n and sqrt(1 - share) (source - target intensity at p projected onto the tangent plane), the
// latter to first order: `target` is its intensity at q and the gradient, which lies in that plane (Park, Zhou, Koltun,
// ICCV 2017; `share` is their lambda, of geometry). The kernel weighs the two rows one by one.
template <class Real>
DLC_HD void add_colored(Kernel kernel, double k, double share, const Real p[3], const Real q[3], const Real normal[3],
                        const Real& source, const Real target[4], Real* sums) {
  const double geometric = std::sqrt(share), photometric = std::sqrt(1.0 - share);
  Real d[3], across[3], along[3];
  for (int i = 0; i < 3; ++i) {
    d[i] = p[i] - q[i];
    across[i] = geometric * normal[i];
    along[i] = -photometric * target[1 + i];
  }
  add_robust_row(kernel, k, p, across, dot(d, across), sums);
  add_robust_row(kernel, k, p, along, photometric * (source - target[0]) + dot(d, along), sums);
}

// r = (p - q) . (n_target + n_source), the source normal turned to the target's side (Rusinkiewicz, SIGGRAPH 2019).
// Half of the rotation moves p, the other half moves q back: hence the lever (p + q) / 2 for the whole rotation.
template <class Real>
DLC_HD void add_symmetric(Kernel kernel, double k, const Real p[3], const Real q[3], const Real source_normal[3],
                          const Real target_normal[3], Real* sums) {
  const Real side = sign_of(dot(source_normal, target_normal));
  Real d[3], lever[3], normal[3];
  for (int i = 0; i < 3; ++i) {
    d[i] = p[i] - q[i];
    lever[i] = 0.5 * (p[i] + q[i]);
    normal[i] = target_normal[i] + side * source_normal[i];
  }
  add_robust_row(kernel, k, lever, normal, dot(d, normal), sums);
}

// R C R^T for a symmetric C.
template <class Real>
DLC_HD void rotate_symmetric3(const double rotation[9], const Real c[6], Real out[6]) {
  const Real full[9] = {c[0], c[1], c[2], c[1], c[3], c[4], c[2], c[4], c[5]};
  Real rc[9];
  multiply3(rotation, full, rc);
  int at = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j) out[at++] = dot(rc + 3 * i, rotation + 3 * j);
}

// A covariance without inverse: no contribution, but the cost tells if it is not finite (0 * inf is NaN).
DLC_HD void add_nothing(const double covariance[6], double* sums) {
  for (int i = 0; i < 6; ++i) sums[kCost] += 0.0 * covariance[i];
}

// With unit weights: d = p - q, `a` the inverse of M.
template <class Real>
DLC_HD void add_mahalanobis(const Real p[3], const Real d[3], const Real a[6], Real* sums) {
  const Real full[9] = {a[0], a[1], a[2], a[1], a[3], a[4], a[2], a[4], a[5]};
  Real pa[9];  // row c: p x (column c of M^-1), so that pa^T is hat(p) M^-1
  for (int c = 0; c < 3; ++c) cross(p, full + 3 * c, pa + 3 * c);
  Real* h = sums + kHessian;
  for (int r = 0; r < 3; ++r) {
    const Real row[3] = {pa[r], pa[3 + r], pa[6 + r]};
    Real turned[3];
    cross(p, row, turned);
    for (int c = r; c < 3; ++c) *h++ += turned[c];
    for (int c = 0; c < 3; ++c) *h++ += row[c];
  }
  for (int i = 0; i < 6; ++i) h[i] += a[i];
  Real force[3], torque[3];
  for (int r = 0; r < 3; ++r) force[r] = dot(full + 3 * r, d);
  cross(p, force, torque);
  for (int i = 0; i < 3; ++i) {
    sums[kGradient + i] += torque[i];
    sums[kGradient + 3 + i] += force[i];
  }
  sums[kCost] += 0.5 * dot(d, force);
}

// Residuals W (p - q) with W = M^(-1/2), M = C_target + R C_source R^T (Segal et al., RSS 2009; `covariance` is M). With
// unit weights only W^T W = M^-1 matters; a robust kernel weighs the three rows of the symmetric root one by one.
// A covariance that has no inverse contributes nothing.
DLC_HD void add_generalized(Kernel kernel, double k, const double p[3], const double q[3], const double covariance[6],
                            double* sums) {
  const double d[3] = {p[0] - q[0], p[1] - q[1], p[2] - q[2]};
  if (kernel == Kernel::kL2) {
    double a[6];
    return invert_symmetric3(covariance, a) ? add_mahalanobis(p, d, a, sums) : add_nothing(covariance, sums);
  }
  double values[3], vectors[9], root[9] = {};
  eig3(covariance, values, vectors);
  if (!(values[0] > 0.0)) return add_nothing(covariance, sums);
  for (int e = 0; e < 3; ++e) {
    const double scale = 1.0 / std::sqrt(values[e]);
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 3; ++c) root[3 * r + c] += scale * vectors[3 * e + r] * vectors[3 * e + c];
  }
  for (int r = 0; r < 3; ++r) add_robust_row(kernel, k, p, root + 3 * r, dot(root + 3 * r, d), sums);
}

}  // namespace dlc
