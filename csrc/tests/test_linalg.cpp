// The small algebra against its own definitions: A v = s v, H x = b, exp against a Taylor series, the best rigid fit.
#include "core/linalg.hpp"

#include <algorithm>
#include <random>

#include "check.hpp"

namespace {

std::mt19937 generator(7);

double normal() {
  static std::normal_distribution<double> distribution;
  return distribution(generator);
}

void random_rotation(double angle_scale, double rotation[9]) {
  const double xi[6] = {angle_scale * normal(), angle_scale * normal(), angle_scale * normal(), 0, 0, 0};
  double pose[16];
  dlc::se3_exp(xi, pose);
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) rotation[3 * r + c] = pose[4 * r + c];
}

double orthogonality(const double m[9]) {  // largest entry of m m^T - I
  double worst = 0.0;
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) worst = std::max(worst, std::fabs(dlc::dot(m + 3 * r, m + 3 * c) - (r == c)));
  return worst;
}

void check_eigen(const double a[6]) {
  double values[3], vectors[9];
  dlc::eig3(a, values, vectors);
  double size = 1e-300;
  for (int i = 0; i < 6; ++i) size = std::max(size, std::fabs(a[i]));
  CHECK(values[0] <= values[1] && values[1] <= values[2]);
  CHECK(orthogonality(vectors) < 1e-14);
  const double full[9] = {a[0], a[1], a[2], a[1], a[3], a[4], a[2], a[4], a[5]};
  for (int e = 0; e < 3; ++e)
    for (int r = 0; r < 3; ++r)
      CHECK(std::fabs(dlc::dot(full + 3 * r, vectors + 3 * e) - values[e] * vectors[3 * e + r]) < 1e-14 * size);
}

void test_eigen() {
  for (int trial = 0; trial < 200; ++trial) {
    double a[6];
    for (double& entry : a) entry = normal() * std::pow(10.0, trial % 17 - 8);
    check_eigen(a);
  }
  const double cases[][6] = {{0, 0, 0, 0, 0, 0}, {1, 0, 0, 1, 0, 1},          {2, 0, 0, 1, 0, 3},
                             {1, 1, 1, 1, 1, 1}, {1, 1e-9, 0, 1, 1e-12, 1},   {1e-30, 0, 0, 1, 0, 1e30},
                             {4, 2, 0, 1, 0, 0}, {1e-160, 1e-161, 0, 0, 0, 0}};
  for (const auto& a : cases) check_eigen(a);
}

// A unit vector along which a covariance is as small as along the least eigenvector; the same one, if the spectrum says.
void check_least(const double a[6], double tolerance) {
  double values[3], vectors[9], least[3];
  dlc::eig3(a, values, vectors);
  dlc::least_eigenvector3(a, least);
  CHECK(std::fabs(dlc::dot(least, least) - 1.0) < 1e-14);
  const double full[9] = {a[0], a[1], a[2], a[1], a[3], a[4], a[2], a[4], a[5]};
  for (int r = 0; r < 3; ++r)
    CHECK(std::fabs(dlc::dot(full + 3 * r, least) - values[0] * least[r]) <= tolerance * values[2]);
  if (values[1] - values[0] > 1e-4 * values[2]) CHECK(1.0 - std::fabs(dlc::dot(least, vectors)) < 1e-12);
}

void test_least_eigenvector() {
  for (int trial = 0; trial < 3000; ++trial) {
    const double spread[3] = {std::pow(10.0, -(trial % 9)), std::pow(10.0, -(trial / 9 % 9)), 1.0};
    double rotation[9], a[6] = {};
    random_rotation(3.0, rotation);
    const double scale = std::pow(10.0, trial % 61 - 30);
    for (int e = 0; e < 3; ++e)
      for (int r = 0, i = 0; r < 3; ++r)
        for (int c = r; c < 3; ++c) a[i++] += scale * spread[e] * rotation[3 * e + r] * rotation[3 * e + c];
    check_least(a, 1e-9);
  }
  const double cases[][6] = {{1, 0, 0, 1, 0, 1}, {2, 0, 0, 1, 0, 3}, {1, 0, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1},
                             {4, 2, 0, 1, 0, 0}, {1e-160, 0, 0, 1e-160, 0, 0}, {5e-324, 0, 0, 0, 0, 0},
                             {1e300, 0, 0, 1e-300, 0, 1e300}};
  for (const auto& a : cases) check_least(a, 1e-12);
}

void check_svd(const double a[9]) {
  double u[9], s[3], v[9];
  dlc::svd3(a, u, s, v);
  CHECK(s[0] >= s[1] && s[1] >= s[2] && s[2] >= 0.0);
  CHECK(orthogonality(u) < 1e-13 && orthogonality(v) < 1e-13);
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) {
      double sum = 0.0;
      for (int k = 0; k < 3; ++k) sum += u[3 * r + k] * s[k] * v[3 * c + k];
      CHECK(std::fabs(sum - a[3 * r + c]) < 1e-14 * std::max(s[0], 1e-300));
    }
}

void test_svd() {
  for (int trial = 0; trial < 200; ++trial) {
    double a[9];
    for (double& entry : a) entry = normal() * std::pow(10.0, trial % 17 - 8);
    if (trial % 3 == 1)
      for (int i = 0; i < 3; ++i) a[6 + i] = a[i] - 2.0 * a[3 + i];  // rank 2
    if (trial % 3 == 2)
      for (int i = 0; i < 3; ++i) a[3 + i] = 2.0 * a[i], a[6 + i] = -a[i];  // rank 1
    check_svd(a);
  }
  const double zero[9] = {}, identity[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1}, mirror[9] = {0, 1, 0, 1, 0, 0, 0, 0, 1};
  check_svd(zero);
  check_svd(identity);
  check_svd(mirror);
}

void test_inverses() {
  double a[9], inverse[9], product[9];
  for (double& entry : a) entry = normal();
  CHECK(dlc::invert3(a, inverse));
  dlc::multiply3(a, inverse, product);
  for (int i = 0; i < 9; ++i) CHECK(std::fabs(product[i] - (i % 4 == 0)) < 1e-12);
  const double singular[9] = {1, 2, 3, 2, 4, 6, 0, 1, 0};
  CHECK(!dlc::invert3(singular, inverse));

  const double symmetric[6] = {3, 0.5, -0.2, 2, 0.7, 1}, full[9] = {3, 0.5, -0.2, 0.5, 2, 0.7, -0.2, 0.7, 1};
  double packed[6];
  CHECK(dlc::invert3(full, inverse) && dlc::invert_symmetric3(symmetric, packed));
  const int place[6] = {0, 1, 2, 4, 5, 8};
  for (int i = 0; i < 6; ++i) CHECK(std::fabs(packed[i] - inverse[place[i]]) < 1e-14);
  const double flat[6] = {1, 0, 0, 0, 0, 1};
  CHECK(!dlc::invert_symmetric3(flat, packed));
}

void test_ldlt() {
  for (int trial = 0; trial < 100; ++trial) {
    double rows[8][6], h[21] = {}, x[6], solution[6], b[6] = {};
    for (auto& row : rows)
      for (int c = 0; c < 6; ++c) row[c] = normal() * (c < 3 ? 1e5 : 1.0);  // rotations in small units
    for (int c = 0; c < 6; ++c) solution[c] = normal() / (c < 3 ? 1e5 : 1.0);
    int at = 0;
    double dense[6][6];
    for (int r = 0; r < 6; ++r)
      for (int c = r; c < 6; ++c) {
        for (const auto& row : rows) h[at] += row[r] * row[c];
        dense[r][c] = dense[c][r] = h[at++];
      }
    for (int r = 0; r < 6; ++r)
      for (int c = 0; c < 6; ++c) b[r] += dense[r][c] * solution[c];
    CHECK(dlc::ldlt6(h, b, x));
    for (int i = 0; i < 6; ++i) CHECK(std::fabs(x[i] - solution[i]) < 1e-7 * (i < 3 ? 1e-5 : 1.0));
  }
  // A plane seen by point-to-plane: only three directions are held.
  double h[21] = {}, x[6], b[6] = {1, 1, 1, 1, 1, 1};
  for (int k = 0; k < 50; ++k) {
    const double px = normal(), py = normal(), j[6] = {py, -px, 0, 0, 0, 1};
    int at = 0;
    for (int r = 0; r < 6; ++r)
      for (int c = r; c < 6; ++c) h[at++] += j[r] * j[c];
  }
  CHECK(!dlc::ldlt6(h, b, x));
  h[0] = std::nan("");
  CHECK(!dlc::ldlt6(h, b, x));
}

// exp of the 4x4 twist matrix by scaling, a Taylor series and squaring.
void series_exp(const double xi[6], double out[16]) {
  const double scale = 1.0 / 1024;
  const double a[16] = {0,      -xi[2], xi[1], xi[3], xi[2], 0, -xi[0], xi[4],
                        -xi[1], xi[0],  0,     xi[5], 0,     0, 0,      0};
  double term[16], next[16];
  for (int i = 0; i < 16; ++i) out[i] = term[i] = i % 5 == 0;
  const auto multiply = [&next](const double* x, const double* y) {
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 4; ++c) {
        next[4 * r + c] = 0.0;
        for (int k = 0; k < 4; ++k) next[4 * r + c] += x[4 * r + k] * y[4 * k + c];
      }
  };
  for (int order = 1; order < 12; ++order) {
    multiply(term, a);
    for (int i = 0; i < 16; ++i) out[i] += term[i] = next[i] * scale / order;
  }
  for (int k = 0; k < 10; ++k) {
    multiply(out, out);
    std::copy(next, next + 16, out);
  }
}

void test_exp() {
  for (double size : {0.0, 1e-12, 1e-6, 5e-3, 9.99e-3, 1.001e-2, 0.1, 1.0, 3.14159265358979, 6.0}) {
    double axis[3] = {normal(), normal(), normal()};
    const double norm = std::sqrt(dlc::dot(axis, axis));
    const double xi[6] = {size * axis[0] / norm, size * axis[1] / norm, size * axis[2] / norm, normal(), normal(),
                          normal()};
    double pose[16], expected[16];
    dlc::se3_exp(xi, pose);
    series_exp(xi, expected);
    for (int i = 0; i < 16; ++i) CHECK(std::fabs(pose[i] - expected[i]) < 3e-12);
  }
}

void test_procrustes() {
  for (int trial = 0; trial < 60; ++trial) {
    double rotation[9], found[9], t[3] = {normal(), normal(), normal()}, translation[3];
    random_rotation(2.0, rotation);
    double sum_w = 0, sum_p[3] = {}, sum_q[3] = {}, sum_qp[9] = {};
    for (int k = 0; k < 20; ++k) {
      double p[3] = {normal(), normal(), normal()}, q[3];
      if (trial % 3 == 1) p[2] = 0.0;  // a plane still determines the rotation
      const double w = std::fabs(normal());
      for (int r = 0; r < 3; ++r) q[r] = dlc::dot(rotation + 3 * r, p) + t[r];
      sum_w += w;
      for (int r = 0; r < 3; ++r) {
        sum_p[r] += w * p[r], sum_q[r] += w * q[r];
        for (int c = 0; c < 3; ++c) sum_qp[3 * r + c] += w * q[r] * p[c];
      }
    }
    dlc::procrustes(sum_w, sum_p, sum_q, sum_qp, found, translation);
    for (int i = 0; i < 9; ++i) CHECK(std::fabs(found[i] - rotation[i]) < 1e-12);
    for (int i = 0; i < 3; ++i) CHECK(std::fabs(translation[i] - t[i]) < 1e-12);
  }
  // A mirror image: the answer is a rotation all the same, and better than its neighbours.
  const double p[4][3] = {{1, 0, 0}, {0, 2, 0}, {0, 0, 3}, {-1, -2, -3}};
  double sum_p[3] = {}, sum_q[3] = {}, sum_qp[9] = {}, rotation[9], translation[3];
  for (const auto& point : p)
    for (int r = 0; r < 3; ++r) {
      sum_p[r] += point[r], sum_q[r] += r == 0 ? -point[r] : point[r];
      for (int c = 0; c < 3; ++c) sum_qp[3 * r + c] += (r == 0 ? -point[r] : point[r]) * point[c];
    }
  dlc::procrustes(4, sum_p, sum_q, sum_qp, rotation, translation);
  CHECK(std::fabs(dlc::determinant3(rotation) - 1.0) < 1e-12);
  const auto agreement = [&](const double* r) {  // trace(R^T sum q p^T), which the best rotation maximises
    double sum = 0.0;
    for (int i = 0; i < 9; ++i) sum += r[i] * sum_qp[i];
    return sum;
  };
  for (int trial = 0; trial < 100; ++trial) {
    double nearby[9], turned[9];
    random_rotation(0.3, nearby);
    dlc::multiply3(nearby, rotation, turned);
    CHECK(agreement(turned) <= agreement(rotation) + 1e-12);
  }
}

}  // namespace

int main() {
  test_eigen();
  test_least_eigenvector();
  test_svd();
  test_inverses();
  test_ldlt();
  test_exp();
  test_procrustes();
  if (failures() == 0) std::puts("linalg: ok");
  return failures() != 0;
}
