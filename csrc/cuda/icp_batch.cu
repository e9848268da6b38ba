// ICP for many pairs of small clouds: a block takes a pair from its centring to its last step. Neighbours are found by
// comparing all points, the target passing through shared memory: a tree would cost more than it saves at this size.
#include <cmath>
#include <limits>

#include "core/icp_step.hpp"
#include "core/neighbourhood.hpp"
#include "cuda/search.cuh"

namespace dlc {
namespace cuda {
namespace {

constexpr int kTile = 512;      // target points in shared memory at a time
constexpr int kPointsEach = 4;  // source points that a thread compares with each of them
constexpr int64_t kLeastPoints = 3;

struct Job {
  IcpBatchProblem problem;
  IcpBatchAnswer answer;
  float bound;
  float* scratch;  // for each pair: source (N, 3), target (M, 3), normals (M, 3)
};

struct Cloud {  // the points that the mask leaves, about their mean
  float* points;
  int64_t size;
  double mean[3];
};

// Keeps the order of the points.
DLC_DEVICE Cloud make_cloud(const float* rows, const uint8_t* mask, int64_t n, float* out) {
  __shared__ uint8_t kept[kThreads];
  Cloud cloud{out, 0, {0, 0, 0}};
  double sums[3] = {};
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool mine = i < n && (!mask || mask[i]);
    __syncthreads();
    kept[threadIdx.x] = mine;
    __syncthreads();
    int before = 0, all = 0;
    for (int t = 0; t < kThreads; ++t) {
      before += t < static_cast<int>(threadIdx.x) ? kept[t] : 0;
      all += kept[t];
    }
    if (mine)
      for (int a = 0; a < 3; ++a) {
        out[3 * (cloud.size + before) + a] = rows[3 * i + a];
        sums[a] += rows[3 * i + a];
      }
    cloud.size += all;
  }
  block_sums(sums);
  for (int a = 0; a < 3; ++a) cloud.mean[a] = sums[a] / static_cast<double>(cloud.size > 0 ? cloud.size : 1);
  for (int64_t i = threadIdx.x; i < cloud.size; i += kThreads)
    for (int a = 0; a < 3; ++a) out[3 * i + a] = static_cast<float>(out[3 * i + a] - cloud.mean[a]);
  __syncthreads();
  return cloud;
}

// Of the bounding box.
DLC_DEVICE double diagonal(const Cloud& cloud) {
  __shared__ float corners[kWarps][6];
  float best[6];
  for (int a = 0; a < 6; ++a) best[a] = cloud.points[a % 3] * (a < 3 ? 1.0f : -1.0f);
  for (int64_t i = threadIdx.x; i < cloud.size; i += kThreads)
    for (int a = 0; a < 6; ++a) {
      const float x = cloud.points[3 * i + a % 3] * (a < 3 ? 1.0f : -1.0f);
      best[a] = x < best[a] ? x : best[a];
    }
  for (int a = 0; a < 6; ++a) {
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(~0u, best[a], step);
      best[a] = other < best[a] ? other : best[a];
    }
    if (threadIdx.x % 32 == 0) corners[threadIdx.x / 32][a] = best[a];
  }
  __syncthreads();
  for (int a = 0; a < 6; ++a)
    for (int w = 0; w < kWarps; ++w) best[a] = corners[w][a] < best[a] ? corners[w][a] : best[a];
  const double d[3] = {-best[3] - best[0], -best[4] - best[1], -best[5] - best[2]};
  return std::sqrt(dot(d, d));
}

// Calls see(tile, count) with every piece of the target; all threads take part.
template <class See>
DLC_DEVICE void for_each_tile(const Cloud& target, const See& see) {
  __shared__ TreePoint tile[kTile];
  for (int64_t begin = 0; begin < target.size; begin += kTile) {
    const int count = static_cast<int>(target.size - begin < kTile ? target.size - begin : kTile);
    __syncthreads();
    for (int t = threadIdx.x; t < count; t += kThreads) {
      const float* const x = target.points + 3 * (begin + t);
      tile[t] = TreePoint{{x[0], x[1], x[2]}, static_cast<int32_t>(begin + t)};
    }
    __syncthreads();
    see(tile, count);
  }
}

template <int capacity>
DLC_DEVICE void fill_normals(const Cloud& target, int neighbours, float* normals) {
  for (int64_t first = 0; first < target.size; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    float q[3] = {0.0f, 0.0f, 0.0f};
    if (i < target.size) load_query(target.points, i, q);
    KNearest<capacity> found(kLargest, neighbours);
    for_each_tile(target, [&](const TreePoint* tile, int count) {
      if (i < target.size) scan_points(tile, count, q, found);
    });
    if (i >= target.size) continue;
    Spread spread;
    for (int j = 0; j < found.count; ++j) spread.add(target.points + 3 * key_index(found.keys[j]), q);
    double covariance[6];
    spread.covariance(covariance);
    normal_of(covariance, normals + 3 * i);
  }
  __syncthreads();
}

// The sums of a linearisation at a pose, for every thread.
template <Kind kind>
DLC_DEVICE void evaluate(const Cloud& source, const Cloud& target, const float* normals, const double* transform,
                         float bound, double* sums_out) {
  const CorrespondingClouds clouds{source.points, nullptr, nullptr, target.points, normals, nullptr};
  const Pose pose(transform);
  double sums[kSums] = {};
  for (int64_t first = 0; first < source.size; first += kPointsEach * kThreads) {
    float q[kPointsEach][3];
    Nearest found[kPointsEach] = {Nearest(bound), Nearest(bound), Nearest(bound), Nearest(bound)};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int e = 0; e < kPointsEach; ++e) {
      const int64_t i = first + e * kThreads + threadIdx.x;
      double p[3] = {0.0, 0.0, 0.0};
      if (i < source.size) pose.apply(source.points + 3 * i, p);
      for (int a = 0; a < 3; ++a) q[e][a] = static_cast<float>(p[a]);
    }
    for_each_tile(target, [&](const TreePoint* tile, int count) {
      for (int t = 0; t < count; ++t) {
        const TreePoint x = tile[t];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
        for (int e = 0; e < kPointsEach; ++e) {
          const float d2 = square_sum(q[e][0] - x.x[0], q[e][1] - x.x[1], q[e][2] - x.x[2]);
          if (d2 <= found[e].bound) found[e].offer(d2, x.index);
        }
      }
    });
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int e = 0; e < kPointsEach; ++e) {
      const int64_t i = first + e * kThreads + threadIdx.x;
      if (i >= source.size || found[e].index == kNoPoint) continue;
      double p[3];
      pose.apply(source.points + 3 * i, p);
      add_correspondence<kind>(clouds, pose, Kernel::kL2, 1.0, i, found[e].index, p, sums);
    }
  }
  block_sums(sums);
  __syncthreads();
  if (threadIdx.x == 0)
    for (int v = 0; v < kSums; ++v) sums_out[v] = sums[v];
  __syncthreads();
}

DLC_DEVICE double rmse_of(const double* sums) {
  return sums[kCount] > 0.0 ? std::sqrt(sums[kSquaredDistance] / sums[kCount]) : 0.0;
}

DLC_DEVICE void shift(const Cloud& source, const Cloud& target, double sign, double* pose) {
  for (int r = 0; r < 3; ++r) pose[4 * r + 3] += sign * (dot(pose + 4 * r, source.mean) - target.mean[r]);
}

template <Kind kind, int capacity>
__global__ void __launch_bounds__(kThreads) icp_kernel(Job job) {
  __shared__ double omega[16], next[16], sums[kSums];
  __shared__ bool moved;
  const IcpBatchProblem& problem = job.problem;
  const int64_t b = blockIdx.x, n = problem.n, m = problem.m;
  double* const pose = job.answer.poses + 16 * b;
  const double* const start = problem.start ? problem.start + 16 * b : nullptr;
  if (threadIdx.x < 16)
    pose[threadIdx.x] = omega[threadIdx.x] = start ? start[threadIdx.x] : (threadIdx.x % 5 ? 0.0 : 1.0);
  if (threadIdx.x == 0) {
    job.answer.fitness[b] = job.answer.rmse[b] = 0.0;
    job.answer.iterations[b] = 0;
    job.answer.converged[b] = false;
  }
  float* const memory = job.scratch + (3 * n + 6 * m) * b;
  const Cloud source = make_cloud(problem.source + 3 * n * b, problem.source_mask ? problem.source_mask + n * b : nullptr,
                                  n, memory);
  const Cloud target = make_cloud(problem.target + 3 * m * b, problem.target_mask ? problem.target_mask + m * b : nullptr,
                                  m, memory + 3 * n);
  if (source.size < kLeastPoints || target.size < kLeastPoints) return;
  float* const normals = memory + 3 * n + 3 * m;
  if constexpr (kind == Kind::kPointToPlane) fill_normals<capacity>(target, problem.neighbours, normals);
  const double extent = diagonal(target), size = static_cast<double>(source.size);
  if (threadIdx.x == 0) shift(source, target, 1.0, omega);
  __syncthreads();
  evaluate<kind>(source, target, normals, omega, job.bound, sums);
  double count = sums[kCount], rmse = rmse_of(sums);
  bool converged = false;
  int64_t taken = 0;
  while (taken < problem.max_iterations && !converged && count > 0.0) {
    if (threadIdx.x == 0) moved = icp_step(kind, sums, omega, next);
    __syncthreads();
    if (!moved) break;
    if (threadIdx.x < 12) omega[threadIdx.x] = next[threadIdx.x];
    __syncthreads();
    ++taken;
    evaluate<kind>(source, target, normals, omega, job.bound, sums);
    converged = std::fabs(sums[kCount] - count) / size < problem.tolerance &&
                std::fabs(rmse_of(sums) - rmse) < problem.tolerance * extent;
    count = sums[kCount], rmse = rmse_of(sums);
  }
  if (threadIdx.x != 0) return;
  job.answer.iterations[b] = taken;
  if (!(count > 0.0)) return;
  job.answer.fitness[b] = count / size;
  job.answer.rmse[b] = rmse;
  job.answer.converged[b] = converged;
  if (taken == 0) return;
  shift(source, target, -1.0, omega);
  for (int i = 0; i < 12; ++i) pose[i] = omega[i];
}

}  // namespace

std::size_t icp_batch_bytes(int64_t batch, int64_t n, int64_t m) {
  return sizeof(float) * static_cast<std::size_t>(batch * (3 * n + 6 * m));
}

void icp_batch(Call call, const IcpBatchProblem& problem, const IcpBatchAnswer& answer, void* scratch) {
  const OnDevice scope(call);
  const Job job{problem, answer, bound_below(problem.max_distance), static_cast<float*>(scratch)};
  const dim3 blocks(static_cast<unsigned>(problem.batch));
  if (problem.kind == Kind::kPointToPoint)
    return launch(call, blocks, dim3(kThreads), icp_kernel<Kind::kPointToPoint, 1>, job);
  if (problem.neighbours > kMaxNeighbours) throw std::invalid_argument("at most 64 neighbours");
  launch(call, blocks, dim3(kThreads),
         problem.neighbours <= 20 ? icp_kernel<Kind::kPointToPlane, 20> : icp_kernel<Kind::kPointToPlane, kMaxNeighbours>,
         job);
}

}  // namespace cuda
}  // namespace dlc
