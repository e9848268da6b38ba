#include "core/assignment_row.hpp"

#include <cstring>

#include "core/assignment_lanes.hpp"
#include "core/simd.hpp"

namespace dlc {
namespace {

using Row = AssignmentRow;
using RowSums = AssignmentRowSums;
// x <- exp(x) for x <= 0; 0 below -80; NaN for NaN. Cephes' polynomial, relative error 1e-7; elementary operations
// only, each rounded by itself, so that every instruction set gives the same bits.
DLC_INLINE void exp_negative(Floats& x) {
  const Floats zero{}, least = zero - 81.0f;
  const auto vanishes = x < -80.0f;
  x = vanishes ? least : x;  // far below, the steps would pass through slow subnormal numbers
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Words bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof bits);
  x = vanishes ? zero : p * power;
}

DLC_INLINE void add_to(float* sums, const Floats& terms) {
  Floats sum;
  load(sums, sum);
  sum += terms;
  store(sum, sums);
}

// One body for all instruction sets; the lanes fix the order of sums. Written out: what stands in an array here leaves
// the registers.
template <bool both_ways, bool moments>
DLC_INLINE void row_body(const Row& row, RowSums& sums) {
  const float *affinity = row.affinity, *tx = row.target[0], *ty = row.target[1], *tz = row.target[2];
  float *c0 = row.columns[0], *c1 = row.columns[1], *c2 = row.columns[2], *c3 = row.columns[3];
  const float x = row.moved[0], y = row.moved[1], z = row.moved[2], beta = row.sharpness, shift = row.shift;
  const float px = row.source[0], py = row.source[1], pz = row.source[2];
  const int64_t end = kLanes * row.blocks;
  for (int64_t lane = 0; lane < kLanes; lane += kWidth) {
    Floats s0, s1, s2, s3;
    load(sums.lanes[0] + lane, s0), load(sums.lanes[1] + lane, s1);
    load(sums.lanes[2] + lane, s2), load(sums.lanes[3] + lane, s3);
    for (int64_t j = lane; j < end; j += kLanes) {
      Floats e, qx, qy, qz;
      load(affinity + j, e), load(tx + j, qx), load(ty + j, qy), load(tz + j, qz);
      const Floats dx = x - qx, dy = y - qy, dz = z - qz;
      e = (e - shift) - beta * (dx * dx + dy * dy + dz * dz);
      exp_negative(e);
      s0 += e;
      if (moments) s1 += e * qx, s2 += e * qy, s3 += e * qz;
      if (both_ways) add_to(c0 + j, e);
      if (both_ways && moments) add_to(c1 + j, e * px), add_to(c2 + j, e * py), add_to(c3 + j, e * pz);
    }
    store(s0, sums.lanes[0] + lane), store(s1, sums.lanes[1] + lane);
    store(s2, sums.lanes[2] + lane), store(s3, sums.lanes[3] + lane);
  }
}

template <bool both_ways, bool moments>
void row_scalar(const Row& row, RowSums& sums) {
  row_body<both_ways, moments>(row, sums);
}

#if DLC_HAS_AVX2
template <bool both_ways, bool moments>
DLC_AVX2 void row_avx2(const Row& row, RowSums& sums) {
  row_body<both_ways, moments>(row, sums);
}
#endif

template <bool both_ways, bool moments>
AssignmentRowKernel choose_row() {
#if DLC_HAS_AVX2
  if (use_avx2()) return row_avx2<both_ways, moments>;
#endif
  return row_scalar<both_ways, moments>;
}

}  // namespace

AssignmentRowKernel choose_assignment_row(bool both_ways, bool moments) {
  if (both_ways) return moments ? choose_row<true, true>() : choose_row<true, false>();
  return moments ? choose_row<false, true>() : choose_row<false, false>();
}

}  // namespace dlc
