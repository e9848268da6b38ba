// The affinities of one pair of clouds, a few rows at a time: a matrix of them need not exist.
#pragma once
#include <vector>

#include "core/assignment.hpp"

namespace dlc {

constexpr int64_t kAffinityRows = 32;  // at a time

class PairAffinity {
 public:
  PairAffinity() = default;
  PairAffinity(const AssignmentAffinity& affinity, int64_t b, int64_t n, int64_t m);

  // `count` <= kAffinityRows rows from `first` on, stride() floats apart: those of the matrix where there is one, or
  // else formed in room() floats at `room`. The same bits from every instruction set.
  const float* rows(int64_t first, int64_t count, float* room) const;
  int64_t stride() const { return stride_; }
  std::size_t room() const { return is_matrix() ? 0 : static_cast<std::size_t>(kAffinityRows * stride_); }

  // No affinity is larger. The largest itself for a matrix; for factors what their lengths allow, as it is cheap.
  float bound() const { return bound_; }
  float largest() const;

 private:
  bool is_matrix() const { return channels_ < 0; }

  const float *source_ = nullptr, *source_bias_ = nullptr;
  std::vector<float> target_;  // for every kLanes columns their features, channel by channel, and last their biases
  int64_t n_ = 0, m_ = 0, channels_ = -1, stride_ = 0;
  float bound_ = 0;
};

}  // namespace dlc
