#include "cuda/assignment.cuh"

namespace dlc {
namespace cuda {
namespace {

// The centre is that of the points with a weight: what padding holds does not matter.
DLC_DEVICE void find_center(const float* points, const float* weights, int64_t n, double* center) {
  double sums[4] = {};
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    if (!(weights[i] > 0.0f)) continue;
    sums[3] += 1.0;
    for (int c = 0; c < 3; ++c) sums[c] += points[3 * i + c];
  }
  block_sums(sums);
  if (threadIdx.x < 3) center[threadIdx.x] = sums[3] > 0.0 ? sums[threadIdx.x] / sums[3] : 0.0;
}

__global__ void __launch_bounds__(kThreads) center_kernel(AssignmentProblem problem, double* centers, float* source,
                                                          float* target) {
  const int64_t b = blockIdx.x, n = problem.n, m = problem.m;
  double* const center = centers + 6 * b;
  find_center(problem.source + 3 * n * b, problem.source_weight + n * b, n, center);
  find_center(problem.target + 3 * m * b, problem.target_weight + m * b, m, center + 3);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += kThreads)
    for (int c = 0; c < 3; ++c)
      source[3 * (n * b + i) + c] = static_cast<float>(problem.source[3 * (n * b + i) + c] - center[c]);
  for (int64_t j = threadIdx.x; j < m; j += kThreads)
    for (int c = 0; c < 3; ++c)
      target[3 * m * b + m * c + j] = static_cast<float>(problem.target[3 * (m * b + j) + c] - center[3 + c]);
}

__global__ void __launch_bounds__(kThreads)
    move_kernel(AssignmentProblem problem, const double* centers, const float* source, float* moved) {
  const int64_t thread = thread_number(), n = problem.n;
  if (thread >= problem.num_poses * problem.batch * n) return;
  const int64_t job = thread / n, b = job % problem.batch, i = thread % n;
  const double *pose = problem.poses + 16 * job, *center = centers + 6 * b;
  const double p[3] = {source[3 * (n * b + i)], source[3 * (n * b + i) + 1], source[3 * (n * b + i) + 2]};
  for (int r = 0; r < 3; ++r) {
    const double shift = dot(pose + 4 * r, center) + pose[4 * r + 3] - center[3 + r];
    moved[3 * thread + r] = static_cast<float>(dot(pose + 4 * r, p) + shift);
  }
}

}  // namespace

std::size_t clouds_bytes(const AssignmentProblem& p) {
  return sizeof(float) * 3 * static_cast<std::size_t>(p.batch * (p.n + p.m) + p.num_poses * p.batch * p.n);
}

AssignmentClouds place_clouds(const AssignmentProblem& p, void* memory) {
  float* const source = static_cast<float*>(memory);
  float* const target = source + 3 * p.batch * p.n;
  return {source, target, target + 3 * p.batch * p.m};
}

void make_clouds(const Call& call, const AssignmentProblem& p, const AssignmentClouds& clouds, double* centers) {
  launch(call, dim3(static_cast<unsigned>(p.batch)), dim3(kThreads), center_kernel, p, centers, clouds.source,
         clouds.target);
  launch_each(call, p.num_poses * p.batch * p.n, move_kernel, p, centers, clouds.source, clouds.moved);
}

}  // namespace cuda
}  // namespace dlc
