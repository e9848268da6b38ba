// Soft assignment of two clouds under many poses: its energy and its expectation-maximisation step, in one sweep.
#pragma once
#include <cstdint>

namespace dlc {

constexpr float kAbsent = -1e4f;  // an affinity at or below it belongs to no pair of points

// a_ij = f_i . g_j + r_i + c_j of B pairs of clouds. A matrix is its own `source`, and has no more.
struct AssignmentAffinity {
  const float* source;                 // (B, N, C): f; or the matrix (B, N, M)
  int64_t channels = -1;               // C; -1 for a matrix
  const float* target = nullptr;       // (B, M, C): g
  const float* source_bias = nullptr;  // (B, N): r
  const float* target_bias = nullptr;  // (B, M): c
  bool is_matrix() const { return channels < 0; }
};

// B pairs of clouds under K poses each. With l_ij = a_ij - beta |R p_i + t - q_j|^2 the energy is
//   - sum_i u_i log(sum_j exp(l_ij) + exp(o)),
// or with `both_ways` the mean of it and of - sum_j v_j log(sum_i exp(l_ij) + exp(o)).
struct AssignmentProblem {
  const float* source;  // (B, N, 3): p
  const float* target;  // (B, M, 3): q
  AssignmentAffinity affinity;
  const double* poses;         // (K, B, 4, 4): R and t
  const double* sharpness;     // (B,): beta >= 0
  const double* outlier;       // (B,): o
  const float* source_weight;  // (B, N): u
  const float* target_weight;  // (B, M): v
  int64_t num_poses, batch, n, m;
  bool both_ways;
};

// energy (K, B), and unless it is null poses_after (K, B, 4, 4): the weighted Procrustes fit to the shares
// u_i exp(l_ij) / (sum_j exp(l_ij) + exp(o)), with `both_ways` the mean of these and of the other way's. The identity
// where the shares sum to less than 1e-19. Memory: O(N + M) for each pair, and O(M) for each thread and for up to 16
// parts of a pair of more than 1024 rows.
//
// Weights exp(l_ij) are float32 with a relative error of about 1e-7 (and what l_ij, rounded to float32, adds), and 0
// where l_ij lies more than 80 below the larger of o and the pair's largest affinity; long sums are double. Where
// o lies over 50 below that affinity, so that such weights would count, a slow loop in double does the pair. The same
// bits for any number of threads and any instruction set.
void soft_assignment(const AssignmentProblem& problem, double* energy, double* poses_after, int num_threads);

}  // namespace dlc
