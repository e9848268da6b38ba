// What the kernels that search share.
#pragma once
#include <stdexcept>

#include "core/kdtree.hpp"
#include "cuda/launch.cuh"
#include "cuda/tree.hpp"

namespace dlc {
namespace cuda {

// The largest d2 whose root is below max_distance; negative where there is none.
inline float bound_below(float max_distance) {
  const float limit = squared_limit(max_distance);
  return limit > 0.0f ? from_bits(bits_of(limit) - 1) : -1.0f;
}

// The smallest collector that holds k: what a thread keeps in local memory decides how many run at a time.
template <class Body>
void with_collector(int k, const Body& body) {
  if (k < 1 || k > kMaxNeighbours) throw std::invalid_argument("1 to 64 neighbours");
  if (k <= 8) body(static_cast<KNearest<8>*>(nullptr));
  else if (k <= 20) body(static_cast<KNearest<20>*>(nullptr));
  else body(static_cast<KNearest<kMaxNeighbours>*>(nullptr));
}

DLC_DEVICE int64_t query_of(int64_t thread, const int32_t* order) { return order ? order[thread] : thread; }

DLC_DEVICE void load_query(const float* queries, int64_t i, float q[3]) {
  for (int a = 0; a < 3; ++a) q[a] = queries[3 * i + a];
}

}  // namespace cuda
}  // namespace dlc
