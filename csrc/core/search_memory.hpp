// Nearest neighbours of points that move a little from call to call, as in ICP.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dlc {

class KdTree;

// What is kept of the searches for n source points between calls with one source, tree and max_distance; zeros at first.
// A search whose answer cannot have changed is left out: where a point has moved by so little that its correspondence is
// still nearer than any other point can be, by the triangle inequality. The answers are the same bits.
struct SearchMemory {
  struct Point {
    float query[3];  // where it was searched from
    float second;    // no point but the one found was nearer than this; 0: nothing is known
    int32_t index;
  };
  struct Run {       // of points that are searched together
    float last[3];   // where its first point was
    float slack;     // motion that a correspondence survives, on average; 0: never searched, -1: not known
  };
  static constexpr int64_t kRun = 128;

  SearchMemory(void* memory, int64_t n);  // of bytes(n), aligned for floats
  static std::size_t bytes(int64_t n);

  // As KdTree::nearest_of_each, for the run [first, first + m) of the points; first is a multiple of kRun, m <= kRun.
  // Runs may be searched by different threads.
  void nearest_of_run(const KdTree& tree, int64_t first, const float* queries, int64_t m, float max_d2, int32_t* index,
                      float* d2) const;

  Run* runs;
  Point* points;
};

}  // namespace dlc
