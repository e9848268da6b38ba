// Threads of our own (no OpenMP: two runtimes in one process otherwise). The partition into blocks never depends on the
// number of threads, so whatever is written per block, or summed in block order, is bit-identical for any number.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace dlc {

// Threads that num_threads <= 0 stands for.
int hardware_threads();

// Calls body(begin, end) once for every block [i * grain, min(n, (i + 1) * grain)), on up to num_threads threads, the
// caller among them. Runs serially when there is one block, when called from inside a body, and when another thread is
// using the pool. The first exception of a body stops the rest and is thrown here. Works in the child of a fork.
void parallel_for(int64_t n, int64_t grain, int num_threads, const std::function<void(int64_t begin, int64_t end)>& body);

// body(begin, end) -> Sum for every block; the partial sums are added (+=) in block order to Sum{}.
template <class Sum, class Body>
Sum parallel_reduce(int64_t n, int64_t grain, int num_threads, const Body& body) {
  Sum total{};
  if (n <= 0) return total;
  if (grain < 1) grain = 1;
  std::vector<Sum> partial(static_cast<std::size_t>((n + grain - 1) / grain));
  parallel_for(n, grain, num_threads, [&](int64_t begin, int64_t end) {
    partial[static_cast<std::size_t>(begin / grain)] = body(begin, end);
  });
  for (const Sum& sum : partial) total += sum;
  return total;
}

}  // namespace dlc
