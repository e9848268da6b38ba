// What the forward and the backward kernels of soft assignments share: the clouds about their centres, and sums.
#pragma once
#include "cuda/launch.cuh"

namespace dlc {
namespace cuda {

constexpr int kColumnsEach = 4;                         // columns of a thread
constexpr int kChunk = kColumnsEach * kThreads;         // columns of a block
constexpr int kRowsAtOnce = 8;                          // rows whose sums are formed together
constexpr int kRowsInFloat = 32;                        // rows summed in float32 before their sums go to double
constexpr int64_t kBlocksWanted = 1056;                 // rows are split among blocks up to this many

struct AssignmentClouds {  // as floats about the centres
  float* source;  // (B, N, 3)
  float* target;  // (B, 3, M)
  float* moved;   // (K * B, N, 3): the source in the frame of the centred target
};

// How the work on (jobs, N, M) is cut up; a function of the sizes alone, so that every device adds in the same order.
struct Cut {
  int64_t strip;                // rows whose affinities exist at once
  int64_t chunks, tiles, rows;  // of columns; of rows, in a strip; rows in a tile
  int64_t all_tiles;
  Cut(int64_t jobs, int64_t n, int64_t m, int64_t strip) : strip(strip) {
    chunks = std::max<int64_t>(1, (m + kChunk - 1) / kChunk);
    const int64_t most = (strip + kRowsInFloat - 1) / kRowsInFloat;
    tiles = std::clamp<int64_t>(kBlocksWanted / std::max<int64_t>(1, jobs * chunks), 1, most);
    rows = (most + tiles - 1) / tiles * kRowsInFloat;
    tiles = (strip + rows - 1) / rows;
    all_tiles = tiles * std::max<int64_t>(1, (n + strip - 1) / strip);
  }
};

// The affinities of rows [first, first + count), (B, count, M).
struct Strip {
  const float* affinity;
  int64_t first, count;
  Strip(const AssignmentProblem& problem, int64_t strip, const float* affinity, int64_t first)
      : affinity(affinity), first(first), count(std::min(strip, problem.n - first)) {}
  DLC_DEVICE int64_t at(int64_t b, int64_t i, int64_t j, int64_t m) const { return (count * b + i - first) * m + j; }
};

struct Place {  // of a block in a cut
  int64_t job, tile, chunk;
  int64_t begin, end;  // rows
  DLC_DEVICE Place(const Cut& cut, const Strip& strip)
      : job(blockIdx.x / (cut.chunks * cut.tiles)), tile(blockIdx.x / cut.chunks % cut.tiles),
        chunk(blockIdx.x % cut.chunks), begin(strip.first + tile * cut.rows), end(begin + cut.rows) {
    if (end > strip.first + strip.count) end = strip.first + strip.count;
    tile += strip.first / cut.strip * cut.tiles;
  }
};

// Sums of `count` numbers over a warp with about one shuffle each: at every step half of the numbers go to the other
// half of the lanes. Number v ends in the lanes from v * 32 / count on; count is 8 or 32. Recursive, so that all indices
// are constants and the numbers stay in registers.
template <int count, int left = count / 2, int step = 16>
DLC_DEVICE float warp_sums(float (&v)[count]) {
  if constexpr (left > 0) {
    const bool high = threadIdx.x & step;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < left; ++i) {
      const float kept = high ? v[i + left] : v[i], given = high ? v[i] : v[i + left];
      v[i] = kept + __shfl_xor_sync(~0u, given, step);
    }
  } else {
    v[0] += __shfl_xor_sync(~0u, v[0], step);
  }
  if constexpr (step > 1) return warp_sums<count, left / 2, step / 2>(v);
  else return v[0];
}

// The clouds of a problem, in clouds_bytes(problem) of memory; made with their centers (B, 6).
std::size_t clouds_bytes(const AssignmentProblem& problem);
AssignmentClouds place_clouds(const AssignmentProblem& problem, void* memory);
void make_clouds(const Call& call, const AssignmentProblem& problem, const AssignmentClouds& clouds, double* centers);

}  // namespace cuda
}  // namespace dlc
