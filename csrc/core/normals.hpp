// Normals and covariances of neighbourhoods.
#pragma once
#include <cstdint>

namespace dlc {

class KdTree;

// For each of points (n, 3): the covariance (sum of squares / count, in double) of its k nearest in the tree, nearer than
// max_distance (infinity: no limit), itself included if it is in the tree; and the eigenvector of the least eigenvalue.
// normals: (n, 3) or null, unit; the component largest in size is positive (signs carry no meaning).
// covariances: (n, 6) xx xy xz yy yz zz, or null. With fewer than 3 neighbours: normal (0, 0, 1) and zero covariance;
// normal (0, 0, 1) also where all neighbours coincide.
void normals(const KdTree& tree, const float* points, int64_t n, int k, float max_distance, float* normals,
             float* covariances, int num_threads);

// Batches of clouds whose neighbours are known. points: (batch, m, 3); rows: (batch, n, k) into each cloud's points,
// nearest first; those outside [0, m) are none. normals: (batch, n, 3), where the nearest is the point itself those of
// `normals` above to the bit.
void normals_of_rows(const float* points, int64_t m, const int64_t* rows, int64_t batch, int64_t n, int k,
                     float* normals, int num_threads);

}  // namespace dlc
