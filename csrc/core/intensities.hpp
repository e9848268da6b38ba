// Intensities of a coloured surface and how they change along it.
#pragma once
#include <cstdint>

namespace dlc {

class KdTree;

constexpr int kLeastIntensityNeighbours = 4;  // a point with fewer, itself included, has no gradient

// For each of the tree's n points, given their intensities (n) and normals (n, 3): its intensity and the gradient along the
// tangent plane, (n, 4). The gradient g minimises sum (g . t - (intensity of neighbour - own))^2 over the k nearest that
// are nearer than max_distance, t the way to a neighbour projected onto the plane, and g . normal = 0 (Park, Zhou, Koltun,
// ICCV 2017). It is zero for a point with too few neighbours or without a normal, and the least of the minimisers
// where the neighbours lie on one line.
void intensity_gradients(const KdTree& tree, const float* intensities, const float* normals, int k, float max_distance,
                         float* intensities_and_gradients, int num_threads);

}  // namespace dlc
