#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/search.cuh"

namespace dlc {
namespace cuda {
namespace {

constexpr int64_t kMaxBlocks = 1024;  // of partial sums: the partition, and so every bit, depends on n alone
constexpr int kSegments = kThreads / kSums;  // threads that share the last sum over the blocks

struct Arguments {
  CorrespondingClouds clouds;
  int64_t n;
  Tree tree;
  bool search;
  double pose[16];
  const double* device_pose;  // or null
  float bound;
  Kernel kernel;
  double parameter;
  int64_t* indices;
  float* distances;
  double* partials;  // (blocks, kSums)
  int32_t* finished;
  double* sums;
};

DLC_DEVICE int64_t partner(const Arguments& a, int64_t i, const double p[3]) {
  if (!a.search) return a.indices[i];
  const float q[3] = {static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2])};
  Nearest found(a.bound);
  traverse(a.tree, q, found);
  const int64_t j = found.index == kNoPoint ? -1 : found.index;
  a.indices[i] = j;
  if (j >= 0) a.distances[i] = std::sqrt(found.bound);
  return j;
}

template <Kind kind, bool robust>
DLC_DEVICE void add_point(const Arguments& a, const Pose& pose, int64_t i, double* sums) {
  double p[3];
  pose.apply(a.clouds.source + 3 * i, p);
  const int64_t j = partner(a, i, p);
  if (j < 0) {
    a.distances[i] = from_bits(0x7f800000);
    if (!(std::fabs(p[0] + p[1] + p[2]) < HUGE_VAL)) sums[kCost] = NAN;
    return;
  }
  const Kernel kernel = robust ? a.kernel : Kernel::kL2;
  const double distance2 = add_correspondence<kind>(a.clouds, pose, kernel, a.parameter, i, j, p, sums);
  if (!a.search) a.distances[i] = static_cast<float>(std::sqrt(distance2));
}

// The block that finishes last adds the blocks' sums, in their order.
DLC_DEVICE void add_blocks(const Arguments& a) {
  __shared__ double segment_sums[kSegments][kSums];
  const int value = threadIdx.x % kSums, segment = threadIdx.x / kSums;
  if (segment < kSegments) {
    const int64_t blocks = gridDim.x, begin = blocks * segment / kSegments, end = blocks * (segment + 1) / kSegments;
    double sum = 0.0;
    for (int64_t b = begin; b < end; ++b) sum += __ldcg(a.partials + b * kSums + value);  // not from a stale cache
    segment_sums[segment][value] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    double sum = 0.0;
    for (int s = 0; s < kSegments; ++s) sum += segment_sums[s][threadIdx.x];
    a.sums[threadIdx.x] = sum;
  }
  if (threadIdx.x == 0) *a.finished = 0;
}

template <Kind kind, bool robust>
__global__ void __launch_bounds__(kThreads) linearize_kernel(Arguments a) {
  __shared__ double warp_sums[kWarps][kSums];
  __shared__ bool last;
  const Pose pose(a.device_pose ? a.device_pose : a.pose);
  double sums[kSums] = {};
  for (int64_t i = thread_number(); i < a.n; i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    add_point<kind, robust>(a, pose, i, sums);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int v = 0; v < kSums; ++v) {
    double sum = sums[v];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32][v] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kSums) {
    double sum = 0.0;
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][threadIdx.x];
    a.partials[static_cast<int64_t>(blockIdx.x) * kSums + threadIdx.x] = sum;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(a.finished, 1) == static_cast<int32_t>(gridDim.x) - 1;
  __syncthreads();
  if (last) {
    __threadfence();
    add_blocks(a);
  }
}

int64_t blocks_of(int64_t n) { return std::clamp<int64_t>((n + kThreads - 1) / kThreads, 1, kMaxBlocks); }

template <Kind kind>
void run(const Call& call, const Arguments& arguments) {
  const auto kernel = arguments.kernel == Kernel::kL2 ? linearize_kernel<kind, false> : linearize_kernel<kind, true>;
  launch(call, dim3(static_cast<unsigned>(blocks_of(arguments.n))), dim3(kThreads), kernel, arguments);
}

}  // namespace

int64_t linearize_partials(int64_t n) { return blocks_of(n) * kSums; }

void linearize(Call call, const DeviceLinearizeProblem& problem, double* partials, int32_t* finished, double* sums) {
  const OnDevice scope(call);
  Arguments a{problem.clouds, problem.n, Tree{}, problem.tree.memory != nullptr, {}, problem.pose,
              bound_below(problem.max_distance), problem.kernel, problem.kernel_parameter, problem.indices,
              problem.distances, partials, finished, sums};
  if (a.search) a.tree = layout(problem.tree.memory, problem.tree.n);
  std::copy(problem.host_pose, problem.host_pose + 16, a.pose);
  switch (problem.kind) {
    case Kind::kPointToPoint: return run<Kind::kPointToPoint>(call, a);
    case Kind::kPointToPlane: return run<Kind::kPointToPlane>(call, a);
    case Kind::kSymmetric: return run<Kind::kSymmetric>(call, a);
    case Kind::kGeneralized: return run<Kind::kGeneralized>(call, a);
    case Kind::kColored: return run<Kind::kColored>(call, a);
  }
}

}  // namespace cuda
}  // namespace dlc
