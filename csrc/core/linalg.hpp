// Small dense algebra, shared by host and device code. Matrices are row-major; a symmetric matrix is its upper triangle
// row by row: 3x3 in 6 numbers (xx xy xz yy yz zz), 6x6 in 21. Poses are 4x4 (16 numbers).
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DLC_HD __host__ __device__ inline
#else
#define DLC_HD inline
#endif

namespace dlc {

// What a correspondence needs is written for one (double) and for several side by side (Lanes).

template <class A, class B>
DLC_HD auto dot(const A a[3], const B b[3]) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

template <class Real>
DLC_HD void cross(const Real a[3], const Real b[3], Real out[3]) {
  const Real x = a[1] * b[2] - a[2] * b[1], y = a[2] * b[0] - a[0] * b[2], z = a[0] * b[1] - a[1] * b[0];
  out[0] = x, out[1] = y, out[2] = z;
}

DLC_HD double square_root(double x) { return std::sqrt(x); }
DLC_HD double sign_of(double x) { return x < 0.0 ? -1.0 : 1.0; }
DLC_HD bool is_moderate(double x) { return std::fabs(x) < 1e300; }  // not for NaN either

template <class Real>
DLC_HD void multiply3(const double a[9], const Real b[9], Real out[9]) {
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) out[3 * r + c] = a[3 * r] * b[c] + a[3 * r + 1] * b[3 + c] + a[3 * r + 2] * b[6 + c];
}

DLC_HD double determinant3(const double a[9]) {
  return a[0] * (a[4] * a[8] - a[5] * a[7]) - a[1] * (a[3] * a[8] - a[5] * a[6]) + a[2] * (a[3] * a[7] - a[4] * a[6]);
}

// False where the matrix is singular (out is untouched).
DLC_HD bool invert3(const double a[9], double out[9]) {
  const double det = determinant3(a);
  const double scale = 1.0 / det;
  if (!is_moderate(scale)) return false;
  const double inverse[9] = {a[4] * a[8] - a[5] * a[7], a[2] * a[7] - a[1] * a[8], a[1] * a[5] - a[2] * a[4],
                             a[5] * a[6] - a[3] * a[8], a[0] * a[8] - a[2] * a[6], a[2] * a[3] - a[0] * a[5],
                             a[3] * a[7] - a[4] * a[6], a[1] * a[6] - a[0] * a[7], a[0] * a[4] - a[1] * a[3]};
  for (int i = 0; i < 9; ++i) out[i] = inverse[i] * scale;
  return true;
}

// Inverse of a symmetric 3x3; false where it is singular.
template <class Real>
DLC_HD bool invert_symmetric3(const Real a[6], Real out[6]) {
  const Real c0 = a[3] * a[5] - a[4] * a[4], c1 = a[2] * a[4] - a[1] * a[5], c2 = a[1] * a[4] - a[2] * a[3];
  const Real scale = 1.0 / (a[0] * c0 + a[1] * c1 + a[2] * c2);
  if (!is_moderate(scale)) return false;
  const Real xx = a[0], xy = a[1], xz = a[2], yy = a[3], yz = a[4], zz = a[5];
  out[0] = c0 * scale, out[1] = c1 * scale, out[2] = c2 * scale;
  out[3] = (xx * zz - xz * xz) * scale, out[4] = (xy * xz - xx * yz) * scale, out[5] = (xx * yy - xy * xy) * scale;
  return true;
}

// Eigenvalues ascending and unit eigenvectors (row i belongs to values[i]; signs are arbitrary) of a symmetric 3x3.
// Cyclic Jacobi rotations: accurate to rounding for any spectrum, repeated and zero eigenvalues included.
DLC_HD void eig3(const double a[6], double values[3], double vectors[9]) {
  double m[3][3] = {{a[0], a[1], a[2]}, {a[1], a[3], a[4]}, {a[2], a[4], a[5]}};
  double v[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};  // rows become the eigenvectors
  const double negligible = 1e-18 * (std::fabs(m[0][0]) + std::fabs(m[1][1]) + std::fabs(m[2][2]) +
                                     std::fabs(m[0][1]) + std::fabs(m[0][2]) + std::fabs(m[1][2]));
  for (int sweep = 0; sweep < 16; ++sweep) {
    bool rotated = false;
    for (int p = 0; p < 2; ++p)
      for (int q = p + 1; q < 3; ++q) {
        if (!(std::fabs(m[p][q]) > negligible)) continue;
        rotated = true;
        const double half = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);  // may be inf: then t = 0
        const double t = (half >= 0.0 ? 1.0 : -1.0) / (std::fabs(half) + std::sqrt(half * half + 1.0));
        const double c = 1.0 / std::sqrt(t * t + 1.0), s = t * c;
        const int k = 3 - p - q;
        m[p][p] -= t * m[p][q];
        m[q][q] += t * m[p][q];
        m[p][q] = m[q][p] = 0.0;
        const double kp = m[k][p], kq = m[k][q];
        m[k][p] = m[p][k] = c * kp - s * kq;
        m[k][q] = m[q][k] = s * kp + c * kq;
        for (int i = 0; i < 3; ++i) {
          const double vp = v[p][i], vq = v[q][i];
          v[p][i] = c * vp - s * vq;
          v[q][i] = s * vp + c * vq;
        }
      }
    if (!rotated) break;
  }
  int order[3] = {0, 1, 2};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2 - i; ++j)
      if (m[order[j]][order[j]] > m[order[j + 1]][order[j + 1]]) {
        const int swap = order[j];
        order[j] = order[j + 1], order[j + 1] = swap;
      }
  for (int i = 0; i < 3; ++i) {
    values[i] = m[order[i]][order[i]];
    for (int c = 0; c < 3; ++c) vectors[3 * i + c] = v[order[i]][c];
  }
}

// The unit eigenvector of the least eigenvalue of a covariance, up to its sign, some six times faster than eig3 where that
// eigenvalue is set apart from the others: Newton's method from the left of the characteristic polynomial's roots, and the
// largest cross product of two rows of a - value * identity. Elsewhere eig3's.
DLC_HD void least_eigenvector3(const double a[6], double out[3]) {
  const double scale = 1.0 / (a[0] + a[3] + a[5]);
  double m[6];
  for (int i = 0; i < 6; ++i) m[i] = a[i] * scale;
  const double minor = m[3] * m[5] - m[4] * m[4];
  const double c1 = minor + m[0] * m[5] - m[2] * m[2] + m[0] * m[3] - m[1] * m[1];
  const double c0 = m[0] * minor + m[1] * (m[2] * m[4] - m[1] * m[5]) + m[2] * (m[1] * m[4] - m[2] * m[3]);
  double value = 0.0, step = 1.0;
  for (int i = 0; i < 8 && std::fabs(step) > 1e-13; ++i) {  // c2, the trace, is 1
    step = (((1.0 - value) * value - c1) * value + c0) / ((2.0 - 3.0 * value) * value - c1);
    value -= step;
  }
  const double x[3] = {m[0] - value, m[1], m[2]}, y[3] = {m[1], m[3] - value, m[4]}, z[3] = {m[2], m[4], m[5] - value};
  double best = 0.0;
  const double* const rows[4] = {x, y, z, x};
  for (int i = 0; i < 3; ++i) {
    double normal[3];
    cross(rows[i], rows[i + 1], normal);
    const double square = dot(normal, normal);
    if (!(square > best)) continue;
    best = square;
    for (int c = 0; c < 3; ++c) out[c] = normal[c];
  }
  if (std::fabs(step) <= 1e-13 && best > 1e-10) {
    const double length = std::sqrt(best);
    for (int c = 0; c < 3; ++c) out[c] /= length;
    return;
  }
  double values[3], vectors[9];
  eig3(a, values, vectors);
  for (int c = 0; c < 3; ++c) out[c] = vectors[c];
}

// A unit vector orthogonal to the unit vector a.
DLC_HD void orthogonal_to(const double a[3], double out[3]) {
  const double x = std::fabs(a[0]), y = std::fabs(a[1]), z = std::fabs(a[2]);
  const double axis[3] = {x <= y && x <= z ? 1.0 : 0.0, y < x && y <= z ? 1.0 : 0.0, z < x && z < y ? 1.0 : 0.0};
  cross(a, axis, out);
  const double norm = std::sqrt(dot(out, out));
  for (int i = 0; i < 3; ++i) out[i] /= norm;
}

// a = u diag(s) v^T with s descending and u, v orthogonal (of either determinant). One-sided Jacobi: columns of a v are
// turned until they are orthogonal, so that small singular values keep their relative accuracy.
DLC_HD void svd3(const double a[9], double u[9], double s[3], double v[9]) {
  double b[3][3], w[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};  // row j: column j of a v, column j of v
  for (int j = 0; j < 3; ++j)
    for (int i = 0; i < 3; ++i) b[j][i] = a[3 * i + j];
  for (int sweep = 0; sweep < 32; ++sweep) {
    bool rotated = false;
    for (int p = 0; p < 2; ++p)
      for (int q = p + 1; q < 3; ++q) {
        const double pp = dot(b[p], b[p]), qq = dot(b[q], b[q]), pq = dot(b[p], b[q]);
        if (!(std::fabs(pq) > 1e-15 * std::sqrt(pp) * std::sqrt(qq))) continue;
        rotated = true;
        const double half = (qq - pp) / (2.0 * pq);
        const double t = (half >= 0.0 ? 1.0 : -1.0) / (std::fabs(half) + std::sqrt(half * half + 1.0));
        const double cosine = 1.0 / std::sqrt(t * t + 1.0), sine = t * cosine;
        for (int i = 0; i < 3; ++i) {
          const double bp = b[p][i], bq = b[q][i], wp = w[p][i], wq = w[q][i];
          b[p][i] = cosine * bp - sine * bq, b[q][i] = sine * bp + cosine * bq;
          w[p][i] = cosine * wp - sine * wq, w[q][i] = sine * wp + cosine * wq;
        }
      }
    if (!rotated) break;
  }
  double length[3];
  for (int j = 0; j < 3; ++j) length[j] = std::sqrt(dot(b[j], b[j]));
  int order[3] = {0, 1, 2};
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2 - i; ++j)
      if (length[order[j]] < length[order[j + 1]]) {
        const int swap = order[j];
        order[j] = order[j + 1], order[j + 1] = swap;
      }
  double left[3][3];  // row j: column j of u; directions that the matrix does not determine are completed
  const double tiny = 1e-15 * length[order[0]];
  for (int j = 0; j < 3; ++j) {
    s[j] = length[order[j]];
    if (s[j] > tiny) {
      for (int i = 0; i < 3; ++i) left[j][i] = b[order[j]][i] / s[j];
    } else if (j == 2) {
      cross(left[0], left[1], left[2]);
    } else if (j == 1) {
      orthogonal_to(left[0], left[1]);
    } else {
      left[0][0] = 1.0, left[0][1] = 0.0, left[0][2] = 0.0;
    }
  }
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      u[3 * i + j] = left[j][i];
      v[3 * i + j] = w[order[j]][i];
    }
}

// The rigid motion q = R p + t that minimises sum w |R p + t - q|^2, from the moments sum w, sum w p, sum w q and
// sum w q p^T (Umeyama, PAMI 1991, the reflection case included). Degenerate moments give one of the minimisers.
DLC_HD void procrustes(double weight_sum, const double sum_p[3], const double sum_q[3], const double sum_qp[9],
                       double rotation[9], double translation[3]) {
  double covariance[9], u[9], s[3], v[9];
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) covariance[3 * r + c] = sum_qp[3 * r + c] - sum_q[r] * sum_p[c] / weight_sum;
  svd3(covariance, u, s, v);
  const double sign = determinant3(u) * determinant3(v) < 0.0 ? -1.0 : 1.0;
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c)
      rotation[3 * r + c] = u[3 * r] * v[3 * c] + u[3 * r + 1] * v[3 * c + 1] + sign * u[3 * r + 2] * v[3 * c + 2];
  for (int r = 0; r < 3; ++r) translation[r] = (sum_q[r] - dot(rotation + 3 * r, sum_p)) / weight_sum;
}

// x with H x = b, H (6, 6) symmetric positive definite in 21 numbers. False where a pivot is lost to rounding (measured
// against its own diagonal entry, so that the units of rotation and translation do not matter); x is then untouched.
DLC_HD bool ldlt6(const double h[21], const double b[6], double x[6]) {
  double l[6][6], d[6], y[6];
  for (int j = 0; j < 6; ++j) {
    const int row = j * (11 - j) / 2;  // h[row + i] is H(j, i) for i >= j
    double pivot = h[row + j];
    for (int k = 0; k < j; ++k) pivot -= l[j][k] * l[j][k] * d[k];
    if (!(pivot > 1e-14 * h[row + j]) || !(pivot < 1e300)) return false;
    d[j] = pivot;
    for (int i = j + 1; i < 6; ++i) {
      double entry = h[row + i];
      for (int k = 0; k < j; ++k) entry -= l[i][k] * l[j][k] * d[k];
      l[i][j] = entry / pivot;
    }
  }
  for (int i = 0; i < 6; ++i) {
    y[i] = b[i];
    for (int k = 0; k < i; ++k) y[i] -= l[i][k] * y[k];
  }
  for (int i = 5; i >= 0; --i) {
    y[i] /= d[i];
    for (int k = i + 1; k < 6; ++k) y[i] -= l[k][i] * y[k];
  }
  for (int i = 0; i < 6; ++i) x[i] = y[i];
  return true;
}

// Pose exp(xi) of the twist xi = (rotation vector [rad], translation part): R = exp(hat(w)), t = V(w) v.
DLC_HD void se3_exp(const double xi[6], double pose[16]) {
  const double *w = xi, *v = xi + 3;
  const double angle2 = dot(w, w), angle = std::sqrt(angle2);
  double a, b, c;  // sin(x)/x, (1 - cos(x))/x^2, (x - sin(x))/x^3; the series where the quotients would cancel
  if (angle < 1e-2) {
    a = 1.0 - angle2 / 6.0 * (1.0 - angle2 / 20.0 * (1.0 - angle2 / 42.0));
    b = 0.5 - angle2 / 24.0 * (1.0 - angle2 / 30.0 * (1.0 - angle2 / 56.0));
    c = 1.0 / 6.0 - angle2 / 120.0 * (1.0 - angle2 / 42.0 * (1.0 - angle2 / 72.0));
  } else {
    const double half_sine = std::sin(0.5 * angle) / angle;
    a = std::sin(angle) / angle;
    b = 2.0 * half_sine * half_sine;
    c = (1.0 - a) / angle2;
  }
  double wv[3], wwv[3];
  cross(w, v, wv);
  cross(w, wv, wwv);
  const double skew[9] = {0, -w[2], w[1], w[2], 0, -w[0], -w[1], w[0], 0};
  for (int r = 0; r < 3; ++r) {
    for (int k = 0; k < 3; ++k)
      pose[4 * r + k] = a * skew[3 * r + k] + b * w[r] * w[k] + (r == k ? 1.0 - b * angle2 : 0.0);
    pose[4 * r + 3] = v[r] + b * wv[r] + c * wwv[r];
  }
  pose[12] = pose[13] = pose[14] = 0.0;
  pose[15] = 1.0;
}

}  // namespace dlc
