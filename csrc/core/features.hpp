// Fast point feature histograms (Rusu et al., ICRA 2009) and their nearest neighbours.
#pragma once
#include <cstdint>

namespace dlc {

class KdTree;

constexpr int kHistogramBins = 11;
constexpr int kFeatureSize = 3 * kHistogramBins;

// points: (n, 3), those of the tree. features: (n, 33): each of the three histograms is the point's own, which sums to
// 100 over the pairs that define their angles, plus that of its neighbours, which sums to 100; zeros where a point has no
// neighbour within the radius.
// oriented: the signs of the normals mean something (they point to the sensor). Otherwise the descriptor is invariant
// to every sign: a neighbour's normal is turned to the centre's side, and the centre's to where its neighbourhood lies.
void fpfh(const KdTree& tree, const float* points, const float* normals, int64_t n, float radius, bool oriented,
          float* features, int num_threads);

// For each row of a (n, size) the nearest row of b (m, size): index (lowest wins a tie) and squared distance; (-1, inf)
// where b is empty. Rows are compared by a.b - |b|^2 / 2, so distances nearer to each other than its rounding are a tie.
void nearest_features(const float* a, int64_t n, const float* b, int64_t m, int size, int64_t* indices,
                      float* squared_distances, int num_threads);

}  // namespace dlc
