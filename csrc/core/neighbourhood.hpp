// Covariance and normal of a few neighbours, for host and device.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/linalg.hpp"

namespace dlc {

// Sums of points relative to `centre`, so that nothing cancels far from the origin.
struct Spread {
  double mean[3], square[6];
  int count;

  DLC_HD Spread() : mean{0, 0, 0}, square{0, 0, 0, 0, 0, 0}, count(0) {}
  DLC_HD void add(const float* p, const float* centre) {
    const double x = static_cast<double>(p[0]) - centre[0], y = static_cast<double>(p[1]) - centre[1],
                 z = static_cast<double>(p[2]) - centre[2];
    mean[0] += x, mean[1] += y, mean[2] += z;
    square[0] += x * x, square[1] += x * y, square[2] += x * z;
    square[3] += y * y, square[4] += y * z, square[5] += z * z;
    ++count;
  }
  // About the mean; zero for fewer than three points.
  DLC_HD void covariance(double out[6]) const {
    for (int i = 0; i < 6; ++i) out[i] = 0;
    if (count < 3) return;
    const double scale = 1.0 / count;
    const double m[3] = {mean[0] * scale, mean[1] * scale, mean[2] * scale};
    out[0] = square[0] * scale - m[0] * m[0], out[1] = square[1] * scale - m[0] * m[1];
    out[2] = square[2] * scale - m[0] * m[2], out[3] = square[3] * scale - m[1] * m[1];
    out[4] = square[4] * scale - m[1] * m[2], out[5] = square[5] * scale - m[2] * m[2];
  }
};

// The eigenvector of the least eigenvalue, its largest component positive; (0, 0, 1) where there is no spread.
DLC_HD void normal_of(const double covariance[6], float out[3]) {
  double normal[3] = {0, 0, 1};
  if (covariance[0] + covariance[3] + covariance[5] > 0) least_eigenvector3(covariance, normal);
  int largest = 0;
  for (int a = 1; a < 3; ++a)
    if (std::fabs(normal[a]) > std::fabs(normal[largest])) largest = a;
  const double sign = normal[largest] < 0 ? -1 : 1;
  for (int a = 0; a < 3; ++a) out[a] = static_cast<float>(sign * normal[a]);
}

// The normal of the points (n, 3) that `rows` (k) names, nearest first; rows outside [0, n) name none.
DLC_HD void normal_of_rows(const float* points, int64_t n, const int64_t* rows, int k, float out[3]) {
  Spread spread;
  const float* centre = nullptr;
  for (int j = 0; j < k; ++j) {
    if (rows[j] < 0 || rows[j] >= n) continue;
    const float* const point = points + 3 * rows[j];
    if (!centre) centre = point;
    spread.add(point, centre);
  }
  double covariance[6];
  spread.covariance(covariance);
  normal_of(covariance, out);
}

}  // namespace dlc
