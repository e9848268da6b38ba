#include "core/assignment_affinity.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/assignment_lanes.hpp"
#include "core/simd.hpp"

namespace dlc {
namespace {

constexpr int kGroup = 8;  // rows at once: sums enough to hide an addition's latency, in registers

struct Rows {
  const float* source[kGroup];  // features
  const float* target;          // as PairAffinity holds them
  float bias[kGroup];
  float* out[kGroup];
  int64_t channels, blocks;
};

// One body for all instruction sets. Written out: what stands in an array here leaves the registers.
DLC_INLINE void rows_body(const Rows& rows) {
  const float *f0 = rows.source[0], *f1 = rows.source[1], *f2 = rows.source[2], *f3 = rows.source[3];
  const float *f4 = rows.source[4], *f5 = rows.source[5], *f6 = rows.source[6], *f7 = rows.source[7];
  const int64_t channels = rows.channels;
  for (int64_t block = 0; block < rows.blocks; ++block)
    for (int64_t lane = 0; lane < kLanes; lane += kWidth) {
      const float* g = rows.target + block * (channels + 1) * kLanes + lane;
      Floats s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{}, column;
      for (int64_t c = 0; c < channels; ++c, g += kLanes) {
        load(g, column);
        s0 += f0[c] * column, s1 += f1[c] * column, s2 += f2[c] * column, s3 += f3[c] * column;
        s4 += f4[c] * column, s5 += f5[c] * column, s6 += f6[c] * column, s7 += f7[c] * column;
      }
      load(g, column);
      const int64_t j = block * kLanes + lane;
      store((s0 + rows.bias[0]) + column, rows.out[0] + j), store((s1 + rows.bias[1]) + column, rows.out[1] + j);
      store((s2 + rows.bias[2]) + column, rows.out[2] + j), store((s3 + rows.bias[3]) + column, rows.out[3] + j);
      store((s4 + rows.bias[4]) + column, rows.out[4] + j), store((s5 + rows.bias[5]) + column, rows.out[5] + j);
      store((s6 + rows.bias[6]) + column, rows.out[6] + j), store((s7 + rows.bias[7]) + column, rows.out[7] + j);
    }
}

void rows_scalar(const Rows& rows) { rows_body(rows); }

#if DLC_HAS_AVX2
DLC_AVX2 void rows_avx2(const Rows& rows) { rows_body(rows); }
#endif

void form(const Rows& rows) {
#if DLC_HAS_AVX2
  if (use_avx2()) return rows_avx2(rows);
#endif
  rows_scalar(rows);
}

// The largest of count numbers, lane by lane so that the compiler vectorises it.
float largest_of(const float* values, int64_t count, float at_least) {
  float best[kLanes];
  std::fill(best, best + kLanes, at_least);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = best[l] < values[i + l] ? values[i + l] : best[l];
  for (; i < count; ++i) best[0] = best[0] < values[i] ? values[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

double length(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return std::sqrt(sum);
}

}  // namespace

PairAffinity::PairAffinity(const AssignmentAffinity& affinity, int64_t b, int64_t n, int64_t m)
    : n_(n), m_(m), channels_(affinity.channels), stride_(m), bound_(kAbsent) {
  if (affinity.is_matrix()) {
    source_ = affinity.source + n * m * b;
    bound_ = largest();
    return;
  }
  source_ = affinity.source + n * channels_ * b;
  source_bias_ = affinity.source_bias + n * b;
  const float *const target = affinity.target + m * channels_ * b, *const target_bias = affinity.target_bias + m * b;
  stride_ = (m + kLanes - 1) / kLanes * kLanes;
  target_.assign(static_cast<std::size_t>(stride_ * (channels_ + 1)), 0.0f);
  double longest = 0, bias = kAbsent;
  for (int64_t j = 0; j < m; ++j) {
    float* const to = target_.data() + j / kLanes * (channels_ + 1) * kLanes + j % kLanes;
    for (int64_t c = 0; c < channels_; ++c) to[c * kLanes] = target[j * channels_ + c];
    to[channels_ * kLanes] = target_bias[j];
    longest = std::max(longest, length(target + j * channels_, channels_));
    bias = std::max<double>(bias, target_bias[j]);
  }
  constexpr double rounding = 1 + 1e-5;  // of the products' sums
  double top = kAbsent;
  for (int64_t i = 0; i < n; ++i)
    top = std::max(top, rounding * longest * length(source_ + i * channels_, channels_) + source_bias_[i] + bias);
  bound_ = std::nextafter(static_cast<float>(top), std::numeric_limits<float>::infinity());
}

const float* PairAffinity::rows(int64_t first, int64_t count, float* room) const {
  if (is_matrix()) return source_ + first * m_;
  for (int64_t begin = 0; begin < count; begin += kGroup) {
    Rows rows{};
    rows.target = target_.data(), rows.channels = channels_, rows.blocks = stride_ / kLanes;
    for (int64_t r = 0; r < kGroup; ++r) {
      const int64_t at = std::min(begin + r, count - 1);  // the last row again where the group is not full
      rows.source[r] = source_ + (first + at) * channels_;
      rows.bias[r] = source_bias_[first + at];
      rows.out[r] = room + at * stride_;
    }
    form(rows);
  }
  return room;
}

float PairAffinity::largest() const {
  if (is_matrix()) return largest_of(source_, n_ * m_, kAbsent);
  std::vector<float> room(this->room());
  float best = kAbsent;
  for (int64_t first = 0; first < n_; first += kAffinityRows) {
    const int64_t count = std::min(kAffinityRows, n_ - first);
    const float* const values = rows(first, count, room.data());
    for (int64_t i = 0; i < count; ++i) best = largest_of(values + i * stride_, m_, best);
  }
  return best;
}

}  // namespace dlc
