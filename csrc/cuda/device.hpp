// The operators on a CUDA device, for plain C++ callers. Every pointer is device memory that the caller allocated, but
// for those called host_*; nothing here allocates, copies to the host or waits. Work is queued on Call::stream of
// Call::device. Answers are those of the functions of the same name in core/, bit for bit where only float32 is involved.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/assignment.hpp"
#include "core/correspondence.hpp"
#include "core/icp_batch.hpp"

namespace dlc {
namespace cuda {

struct Call {
  int device;
  void* stream;  // a cudaStream_t
};

// 0 where there is none, or no driver.
int device_count();

// Why device_count() is 0, or "".
std::string why_no_device();

// --- sorting and searching ---

constexpr int kMaxNeighbours = 64;         // of a search in a tree
constexpr int kMaxRaggedNeighbours = 128;  // of one without

struct Workspace {
  void* memory;
  std::size_t bytes;  // sort_bytes(n)
};
std::size_t sort_bytes(int64_t n);

// order: (n) int32, the points (n, 3) along the Morton curve with 2^bits cells an axis; equal cells keep their order.
void morton_order(Call call, const float* points, int64_t n, int bits, int32_t* order, Workspace workspace);

// A tree over points (n, 3), which are copied into it; n >= 1. memory: tree_bytes(n), aligned to 16.
std::size_t tree_bytes(int64_t n);
void build_tree(Call call, const float* points, int64_t n, void* memory, Workspace workspace);

struct TreeMemory {
  const void* memory;
  int64_t n;
};

// queries: (m, 3); order: (m) in which they are searched, or null; k <= kMaxNeighbours; distances, indices: (m, k).
void knn(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, int k, float max_distance,
         float* distances, int64_t* indices);

// Ragged batches of small clouds, without a tree: queries query_splits[b] to query_splits[b + 1] look among points
// point_splits[b] to point_splits[b + 1]; indices count from the cloud's first point. Splits: (batch + 1). A point that
// is not finite is never found, and such a query finds nothing.
// longest: at least the largest number of queries in a cloud; k <= kMaxRaggedNeighbours.
void knn_ragged(Call call, const float* points, const int64_t* point_splits, const float* queries,
                const int64_t* query_splits, int64_t batch, int64_t longest, int k, float max_distance,
                float* distances, int64_t* indices);

// counts: (m).
void radius_count(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, float radius,
                  int64_t* counts);
// splits: (m + 1), the running sums of the counts; keys: (splits[m]), scratch.
void radius_fill(Call call, TreeMemory tree, const float* queries, const int32_t* order, int64_t m, float radius,
                 const int64_t* splits, uint64_t* keys, float* distances, int64_t* indices);

// --- groups of points ---

// points: (n, 3), those of the tree; order as above; normals: (n, 3); covariances: (n, 6); k <= kMaxNeighbours.
void normals(Call call, TreeMemory tree, const float* points, const int32_t* order, int64_t n, int k,
             float max_distance, float* normals, float* covariances);

void normals_of_rows(Call call, const float* points, int64_t m, const int64_t* rows, int64_t batch, int64_t n, int k,
                     float* normals);

// The points (n, 3) voxel by voxel: order (n) int32 and their voxels' codes (n), ascending.
void voxel_order(Call call, const float* points, int64_t n, const double host_origin[3], double voxel_size,
                 uint64_t* codes, int32_t* order, Workspace workspace);
// starts: (voxels), where each voxel begins in the order. inverse: (n); means: (voxels, 3).
void voxel_means(Call call, const float* points, int64_t n, const int32_t* order, const int64_t* starts, int64_t voxels,
                 int64_t* inverse, float* means);

// --- registration ---

struct DeviceLinearizeProblem {
  Kind kind;
  CorrespondingClouds clouds;
  int64_t n;
  TreeMemory tree;         // over clouds.target; memory null: the correspondences are given in `indices`
  double host_pose[16];    // T_target_source
  const double* pose;      // the same in device memory, read when the kernel runs; null: host_pose
  float max_distance;
  Kernel kernel;
  double kernel_parameter;
  int64_t* indices;        // (n), -1 = none. With a tree: output
  float* distances;        // (n), inf = none: output
};
// partials: linearize_partials(n) doubles; finished: one int32 that is zero, and zero again afterwards. sums: (kSums).
// One launch. The same bits on every device.
int64_t linearize_partials(int64_t n);
void linearize(Call call, const DeviceLinearizeProblem& problem, double* partials, int32_t* finished, double* sums);

// As dlc::icp_batch, with one block a pair. scratch: icp_batch_bytes(...).
std::size_t icp_batch_bytes(int64_t batch, int64_t n, int64_t m);
void icp_batch(Call call, const IcpBatchProblem& problem, const IcpBatchAnswer& answer, void* scratch);

// --- soft assignment ---

// Rows of affinities exist a strip at a time, [first, first + strip) for first = 0, strip, ..: `affinity` (B, rows of the
// strip, M) is what the caller forms of factors, or a matrix as its only strip. `strip` is the same in all calls, at
// least 1 and a multiple of 32 unless it holds all rows.
struct AssignmentAnswer {
  double* energy;       // (K, B)
  double* poses_after;  // (K, B, 4, 4), or null
  float* row_logs;      // (K, B, N): log(1 + sum_j exp(l_ij - o))
  float* column_logs;   // (K, B, M): the same of the columns; null without both_ways
};
// scratch: assignment_bytes(..), aligned to 16, and left alone from the first call to the last. `moments`: whether
// poses_after is wanted. A sweep for each strip in order (an empty one for a cloud without points), and finish.
std::size_t assignment_bytes(const AssignmentProblem& problem, int64_t strip, bool moments);
void assignment_sweep(Call call, const AssignmentProblem& problem, int64_t strip, bool moments, const float* affinity,
                      int64_t first, void* scratch);
void assignment_finish(Call call, const AssignmentProblem& problem, int64_t strip, const AssignmentAnswer& answer,
                       void* scratch);

// The energies' gradient, as far as it takes a sum over all pairs of points; d_ij = dL/dl_ij for dL/dE = weights (K, B).
struct AssignmentGradient {
  const double* weights;
  const float *row_logs, *column_logs;  // of the forward pass
  float* affinity;  // (B, rows of the strip, M): sum_k d_ij
  float* rows;      // (K, B, chunks, N, 4): parts of sum_j d_ij and of sum_j d_ij (q_j - centre)
  float* columns;   // (K, B, tiles, M, 4): parts of sum_i d_ij and of sum_i d_ij (R p_i + t - centre)
  double* spread;   // (K, B, chunks * tiles): parts of sum_ij d_ij |R p_i + t - q_j|^2
  double* centers;  // (B, 6): of source and target
};
struct AssignmentParts {
  int64_t chunks, tiles;
};
AssignmentParts assignment_parts(const AssignmentProblem& problem, int64_t strip);
// The strips in order, each with its own `gradient.affinity`. scratch: assignment_gradient_bytes(problem), aligned to 16.
std::size_t assignment_gradient_bytes(const AssignmentProblem& problem);
void assignment_gradient(Call call, const AssignmentProblem& problem, int64_t strip, const float* affinity,
                         int64_t first, const AssignmentGradient& gradient, void* scratch);

}  // namespace cuda
}  // namespace dlc
