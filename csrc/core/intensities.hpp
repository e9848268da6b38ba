// Intensities of a coloured surface and how they change along it.
#pragma once
#include <cstdint>

namespace dlc {

class KdTree;

constexpr int kLeastIntensityNeighbours = 4;  // a point with fewer, itself included, has no gradient

// For each of the tree's n points, given their intensities (n) and normals (n, 3): its intensity and the gradient along
// the tangent plane, (n, 4). The least squares of Park, Zhou and Koltun (ICCV 2017) as in Open3D 0.20: g minimises the
// sum of (g . way - change)^2 over the ways to the k nearest that are nearer than max_distance and the changes of
// intensity, with ((count - 1) g . normal)^2, and its part along the normal is left out. (The paper projects the ways
// onto the plane; on a surface the two differ by second-order terms.) Zero for a point with too few neighbours or
// without a normal; the least of the minimisers where the neighbours lie on one line.
void intensity_gradients(const KdTree& tree, const float* intensities, const float* normals, int k, float max_distance,
                         float* intensities_and_gradients, int num_threads);

}  // namespace dlc
