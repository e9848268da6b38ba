// Iterative closest points for many pairs of small clouds: a pair is one job, from its search tree to its last step.
#pragma once
#include <cstdint>

#include "core/residuals.hpp"

namespace dlc {

struct IcpBatchProblem {
  Kind kind;                   // kPointToPoint or kPointToPlane
  const float* source;         // (B, N, 3)
  const float* target;         // (B, M, 3)
  const uint8_t* source_mask;  // (B, N), or null: all are points. What is not may hold anything
  const uint8_t* target_mask;  // (B, M), or null
  const double* start;         // (B, 4, 4) T_target_source, or null: identities
  int64_t batch, n, m;
  float max_distance;          // of a correspondence (strictly less)
  int64_t max_iterations;
  double tolerance;            // of the changes of fitness and of RMSE / diagonal of the target's box (strictly less)
  int neighbours;              // of a target point, itself included, for its normal
};

struct IcpBatchAnswer {
  double* poses;        // (B, 4, 4)
  double* fitness;      // (B,) share of the source's points that have a correspondence
  double* rmse;         // (B,) of the correspondences' distances
  int64_t* iterations;  // (B,) steps taken
  bool* converged;      // (B,)
};

// Where a cloud has fewer than three points, or nothing corresponds at the end, the pose is the start and fitness and
// rmse are 0. Points are float32 about their clouds' means, all else is double; the same bits for any num_threads.
void icp_batch(const IcpBatchProblem& problem, const IcpBatchAnswer& answer, int num_threads);

}  // namespace dlc
