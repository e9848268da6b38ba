// Soft assignment, backward: the logits are formed again, so that nothing of size N x M is kept but the gradient by a
// matrix of affinities, or by a strip of them.
#include <cmath>

#include "cuda/assignment.cuh"

namespace dlc {
namespace cuda {
namespace {

struct Backward {
  AssignmentProblem problem;
  AssignmentClouds clouds;
  Cut cut;
  AssignmentGradient gradient;
};

// A block owns its rows and columns for every pose, so that the affinity's gradient needs no atomics.
template <bool both_ways>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Backward s, Strip strip) {
  constexpr int values = 4, at_once = kRowsAtOnce * values;
  __shared__ float warps[2][kWarps][at_once];
  const Place place(s.cut, strip);
  const int64_t n = s.problem.n, m = s.problem.m, b = place.job;
  const float beta = static_cast<float>(s.problem.sharpness[b]), outlier = static_cast<float>(s.problem.outlier[b]);
  const int64_t first_column = place.chunk * kChunk + threadIdx.x;
  const int64_t begin = place.begin, end = place.end;
  float q[kColumnsEach][3], v[kColumnsEach];
  for (int c = 0; c < kColumnsEach; ++c) {
    const int64_t j = first_column + c * kThreads;
    v[c] = j < m ? s.problem.target_weight[m * b + j] : 0.0f;
    for (int a = 0; a < 3; ++a) q[c][a] = j < m ? s.clouds.target[3 * m * b + m * a + j] : 0.0f;
  }
  for (int64_t k = 0; k < s.problem.num_poses; ++k) {
    const int64_t job = k * s.problem.batch + b;
    const float scale = -static_cast<float>(s.gradient.weights[job]) * (both_ways ? 0.5f : 1.0f);
    float logs[kColumnsEach] = {}, columns[kColumnsEach][values] = {};
    double long_columns[kColumnsEach][values] = {}, spread[1] = {0.0};
    for (int c = 0; c < kColumnsEach && both_ways; ++c) {
      const int64_t j = first_column + c * kThreads;
      if (j < m) logs[c] = s.gradient.column_logs[job * m + j];
    }
    for (int64_t first = begin; first < end; first += kRowsAtOnce) {
      float sums[at_once] = {}, spread_here = 0.0f;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const int64_t i = first + r;
        if (i >= end) continue;
        const float* const moved = s.clouds.moved + 3 * (n * job + i);
        const float weight = s.problem.source_weight[n * b + i], log = s.gradient.row_logs[job * n + i];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
        for (int c = 0; c < kColumnsEach; ++c) {
          const int64_t j = first_column + c * kThreads, pair = strip.at(b, i, j, m);
          if (j >= m) continue;
          const float affinity = strip.affinity[pair];
          const float dx = moved[0] - q[c][0], dy = moved[1] - q[c][1], dz = moved[2] - q[c][2];
          const float distance2 = dx * dx + dy * dy + dz * dz;
          const float x = (affinity - outlier) - beta * distance2;
          float share = weight * std::exp(x - log);
          if (both_ways) share += v[c] * std::exp(x - logs[c]);
          const float d = affinity <= kAbsent ? 0.0f : scale * share;
          s.gradient.affinity[pair] = k == 0 ? d : s.gradient.affinity[pair] + d;
          spread_here += affinity <= kAbsent ? 0.0f : d * distance2;
          sums[r * values] += d;
          columns[c][0] += d;
          for (int a = 0; a < 3; ++a) {
            sums[r * values + 1 + a] += d * q[c][a];
            columns[c][1 + a] += d * moved[a];
          }
        }
      }
      spread[0] += spread_here;
      const int buffer = static_cast<int>((first - begin) / kRowsAtOnce % 2);
      const float sum = warp_sums(sums);
      warps[buffer][threadIdx.x / 32][threadIdx.x % 32] = sum;
      __syncthreads();  // the other buffer's readers are past it, too
      const int64_t row = first + threadIdx.x / values;
      if (threadIdx.x < at_once && row < end) {
        float total = 0.0f;
        for (int w = 0; w < kWarps; ++w) total += warps[buffer][w][threadIdx.x];
        s.gradient.rows[((job * s.cut.chunks + place.chunk) * n + row) * values + threadIdx.x % values] = total;
      }
      const int64_t done = first - begin + kRowsAtOnce;
      if (done % kRowsInFloat == 0 || first + kRowsAtOnce >= end)
        for (int c = 0; c < kColumnsEach; ++c)
          for (int a = 0; a < values; ++a) {
            long_columns[c][a] += columns[c][a];
            columns[c][a] = 0.0f;
          }
    }
    for (int c = 0; c < kColumnsEach; ++c) {
      const int64_t j = first_column + c * kThreads;
      if (j >= m) continue;
      float* const out = s.gradient.columns + ((job * s.cut.all_tiles + place.tile) * m + j) * values;
      for (int a = 0; a < values; ++a) out[a] = static_cast<float>(long_columns[c][a]);
    }
    block_sums(spread);  // a barrier, too: the next pose may write to both buffers
    if (threadIdx.x == 0)
      s.gradient.spread[(job * s.cut.all_tiles + place.tile) * s.cut.chunks + place.chunk] = spread[0];
  }
}

}  // namespace

AssignmentParts assignment_parts(const AssignmentProblem& problem, int64_t strip) {
  const Cut cut(problem.batch, problem.n, problem.m, strip);
  return {cut.chunks, cut.all_tiles};
}

std::size_t assignment_gradient_bytes(const AssignmentProblem& problem) { return clouds_bytes(problem); }

void assignment_gradient(Call call, const AssignmentProblem& problem, int64_t strip, const float* affinity,
                         int64_t first, const AssignmentGradient& gradient, void* scratch) {
  if (problem.num_poses * problem.batch == 0) return;
  const OnDevice scope(call);
  const Cut cut(problem.batch, problem.n, problem.m, strip);
  const Backward s{problem, place_clouds(problem, scratch), cut, gradient};
  if (first == 0) make_clouds(call, problem, s.clouds, gradient.centers);
  launch(call, dim3(static_cast<unsigned>(problem.batch * cut.chunks * cut.tiles)), dim3(kThreads),
         problem.both_ways ? gradient_kernel<true> : gradient_kernel<false>, s,
         Strip(problem, strip, affinity, first));
}

}  // namespace cuda
}  // namespace dlc
