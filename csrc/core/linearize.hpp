// One iteration's normal equations in one pass: nearest neighbour, residual, robust weight, Jacobian, reduction.
#pragma once
#include <cstdint>

#include "core/residuals.hpp"

namespace dlc {

class KdTree;
struct SearchMemory;

struct LinearizeProblem {
  Kind kind;
  const float* source;              // (n, 3)
  const float* source_normals;      // (n, 3) or null; in the source's own frame, like the covariances
  const float* source_covariances;  // (n, 6) xx xy xz yy yz zz, or null
  int64_t n;
  const KdTree* tree;               // over `target`; null: the correspondences are given in `indices`
  const float* target;              // (m, 3)
  const float* target_normals;      // (m, 3) or null
  const float* target_covariances;  // (m, 6) or null
  const double* transform;          // (4, 4) T_target_source
  float max_distance;               // of a correspondence that is searched (strictly less)
  Kernel kernel;
  double kernel_parameter;
  int64_t* indices;  // (n), -1 = none. With a tree: output or null
  float* distances;  // (n), inf = none: output or null
  const SearchMemory* memory = nullptr;  // or null
  // Of the colored kind:
  const float* source_intensities = nullptr;  // (n)
  const float* target_intensities = nullptr;  // (m, 4): intensity, and its gradient along the surface
  double lambda_geometric = 1.0;              // 0 to 1, share of the geometric residual
};

// sums: (kSums), see residuals.hpp. Points are float32, everything else is double; the sums are bit-identical for any
// num_threads, and not all finite where something that was used is not. Searches are quickest where neighbours in
// `source` are neighbours in space (Morton order).
void linearize(const LinearizeProblem& problem, double* sums, int num_threads);

}  // namespace dlc
