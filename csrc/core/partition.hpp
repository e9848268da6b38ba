// The k least of n points along an axis, for building trees.
#pragma once
#include <cstdint>

namespace dlc {

struct alignas(16) Item {
  float x[3];
  int32_t index;
};

// Writes from[0, n) to to[0, n) so that its first k are those that come first by (x[axis], index); each side in an order
// that depends on the input alone. 0 < k < n; the arrays do not overlap; what `from` holds afterwards is undefined.
void partition(Item* from, Item* to, int64_t n, int64_t k, int axis);

}  // namespace dlc
