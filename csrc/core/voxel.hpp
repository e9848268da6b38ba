// One point per occupied cell of a cubic grid: the mean of its points.
#pragma once
#include <cstdint>

namespace dlc {

// points: (n, 3), finite. The grid starts half a voxel below the least coordinates (as Open3D's voxel_down_sample).
// inverse: (n), the voxel of each point. means: (m, 3) written, room for n; summed in double, in the order of the points.
// Voxels are in Morton order. Returns m. Throws std::invalid_argument if voxel_size is not positive and finite, or so
// small that the grid would have more than 2^21 cells along an axis.
int64_t voxel_downsample(const float* points, int64_t n, double voxel_size, int64_t* inverse, float* means,
                         int num_threads);

}  // namespace dlc
