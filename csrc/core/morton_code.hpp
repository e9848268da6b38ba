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

}  // namespace dlc
