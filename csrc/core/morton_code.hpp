// Cells numbered along the Morton (Z) curve, for host and device.
#pragma once
#include <cstdint>

#include "core/linalg.hpp"

namespace dlc {

constexpr int kMortonBits = 21;  // per axis, at most

// Spreads the lowest 21 bits of v so that two zero bits follow each.
DLC_HD uint64_t spread3(uint64_t v) {
  v &= 0x1fffff;
  v = (v | v << 32) & 0x1f00000000ffffull;
  v = (v | v << 16) & 0x1f0000ff0000ffull;
  v = (v | v << 8) & 0x100f00f00f00f00full;
  v = (v | v << 4) & 0x10c30c30c30c30c3ull;
  return (v | v << 2) & 0x1249249249249249ull;
}

DLC_HD uint64_t morton_code(uint64_t x, uint64_t y, uint64_t z) {
  return spread3(x) | spread3(y) << 1 | spread3(z) << 2;
}

// Cells of the Morton order: a cubic grid of 2^bits an axis over a box.
struct MortonGrid {
  float lo[3], scale, last;

  DLC_HD MortonGrid(const float* low, const float* high, int bits) : last(static_cast<float>((1 << bits) - 1)) {
    float extent = 0.0f;
    for (int a = 0; a < 3; ++a) {
      lo[a] = low[a];
      const float size = high[a] - low[a];
      extent = size > extent ? size : extent;
    }
    scale = extent > 0.0f ? last / extent : 0.0f;
  }
  DLC_HD uint64_t code(const float* point) const {
    uint64_t cell[3];
    for (int a = 0; a < 3; ++a) {
      const float at = (point[a] - lo[a]) * scale;
      // 0 also where it is not a number
      cell[a] = at > 0.0f ? static_cast<uint64_t>(static_cast<int32_t>(at < last ? at : last)) : 0;
    }
    return morton_code(cell[0], cell[1], cell[2]);
  }
};

// Voxels of a given size, for points that are not below the origin.
struct VoxelGrid {
  double origin[3], size;

  DLC_HD uint64_t code(const float* point) const {
    uint64_t cell[3];
    for (int a = 0; a < 3; ++a) cell[a] = static_cast<uint64_t>(static_cast<int64_t>((point[a] - origin[a]) / size));
    return morton_code(cell[0], cell[1], cell[2]);
  }
};

}  // namespace dlc
