// Soft assignment, forward. With x_ij = l_ij - o every exp(x_ij) is formed once and added to its row and its column:
// nothing of size N x M but a strip of affinities is read, and nothing of that size is written. Where a sum leaves float32's
// range, which the device notices itself, a slow kernel in double with a running maximum does the pair again.
#include "cuda/assignment.cuh"

#include <cmath>

#include "core/assignment_moments.hpp"

namespace dlc {
namespace cuda {
namespace {

constexpr float kTooMuch = 1e30f;  // a sum of exp(x) whose products with points could overflow

struct Sweep {
  AssignmentProblem problem;
  AssignmentClouds clouds;
  Cut cut;
  float* row_parts;     // (jobs, chunks, N, values)
  float* column_parts;  // (jobs, tiles, M, values)
  float* shares[2];     // (jobs, N, values), (jobs, M, values): shares' sums, and times the other cloud's points
  float* logs[2];       // (jobs, N), (jobs, M)
  int32_t* flags;       // (jobs): does not fit float32
  double* centers;
};

template <bool both_ways, bool moments>
__global__ void __launch_bounds__(kThreads) sweep_kernel(Sweep s, Strip strip) {
  constexpr int values = moments ? 4 : 1, at_once = kRowsAtOnce * values;
  __shared__ float warps[2][kWarps][at_once];
  const Place place(s.cut, strip);
  const int64_t n = s.problem.n, m = s.problem.m, b = place.job % s.problem.batch;
  const float beta = static_cast<float>(s.problem.sharpness[b]), outlier = static_cast<float>(s.problem.outlier[b]);
  const int64_t first_column = place.chunk * kChunk + threadIdx.x;
  float q[kColumnsEach][3], columns[kColumnsEach][values] = {};
  double long_columns[kColumnsEach][values] = {};
  for (int c = 0; c < kColumnsEach; ++c)
    for (int a = 0; a < 3; ++a) {
      const int64_t j = first_column + c * kThreads;
      q[c][a] = j < m ? s.clouds.target[3 * m * b + m * a + j] : 0.0f;
    }
  const int64_t begin = place.begin, end = place.end;
  for (int64_t first = begin; first < end; first += kRowsAtOnce) {
    float sums[at_once] = {};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t i = first + r;
      if (i >= end) continue;
      const float* const moved = s.clouds.moved + 3 * (n * place.job + i);
      const float* const p = s.clouds.source + 3 * (n * b + i);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int c = 0; c < kColumnsEach; ++c) {
        const int64_t j = first_column + c * kThreads;
        if (j >= m) continue;
        const float affinity = strip.affinity[strip.at(b, i, j, m)];
        const float dx = moved[0] - q[c][0], dy = moved[1] - q[c][1], dz = moved[2] - q[c][2];
        const float x = (affinity - outlier) - beta * (dx * dx + dy * dy + dz * dz);
        const float e = affinity <= kAbsent ? 0.0f : std::exp(x);
        sums[r * values] += e;
        if (both_ways) columns[c][0] += e;
        if constexpr (moments)
          for (int a = 0; a < 3; ++a) {
            sums[r * values + 1 + a] += e * q[c][a];
            if (both_ways) columns[c][1 + a] += e * p[a];
          }
      }
    }
    const int buffer = static_cast<int>((first - begin) / kRowsAtOnce % 2);
    const float sum = warp_sums(sums);
    if (threadIdx.x % (32 / at_once) == 0) warps[buffer][threadIdx.x / 32][threadIdx.x % 32 / (32 / at_once)] = sum;
    __syncthreads();  // the other buffer's readers are past it, too
    const int64_t row = first + threadIdx.x / values;
    if (threadIdx.x < at_once && row < end) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += warps[buffer][w][threadIdx.x];
      s.row_parts[((place.job * s.cut.chunks + place.chunk) * n + row) * values + threadIdx.x % values] = total;
    }
    const int64_t done = first - begin + kRowsAtOnce;
    if (both_ways && (done % kRowsInFloat == 0 || first + kRowsAtOnce >= end))
      for (int c = 0; c < kColumnsEach; ++c)
        for (int k = 0; k < values; ++k) {
          long_columns[c][k] += columns[c][k];
          columns[c][k] = 0.0f;
        }
  }
  for (int c = 0; c < kColumnsEach && both_ways; ++c) {
    const int64_t j = first_column + c * kThreads;
    if (j >= m) continue;
    float* const out = s.column_parts + ((place.job * s.cut.all_tiles + place.tile) * m + j) * values;
    for (int k = 0; k < values; ++k) out[k] = static_cast<float>(long_columns[c][k]);
  }
}

// parts: (jobs, count, size, values) -> logs (jobs, size) of the totals over exp(o), and shares (jobs, size, values).
template <int values>
__global__ void __launch_bounds__(kThreads) combine_kernel(const float* parts, int64_t jobs, int64_t count,
                                                           int64_t size, float* logs, float* shares, int32_t* flags) {
  const int64_t thread = thread_number();
  if (thread >= jobs * size) return;
  const int64_t job = thread / size, i = thread % size;
  double sums[values] = {};
  for (int64_t part = 0; part < count; ++part)
    for (int k = 0; k < values; ++k) sums[k] += parts[((job * count + part) * size + i) * values + k];
  if (!(sums[0] < kTooMuch)) flags[job] = 1;
  logs[thread] = static_cast<float>(std::log1p(sums[0]));
  for (int k = 0; k < values; ++k) shares[thread * values + k] = static_cast<float>(sums[k] / (1.0 + sums[0]));
}

struct RunningSums {  // of exp(x), and of that times points, all times exp(-top)
  double top = 0.0, sums[4] = {};

  DLC_DEVICE void rescale(double to) {
    const double scale = std::exp(top - to);
    for (double& sum : sums) sum *= scale;
    top = to;
  }
  DLC_DEVICE void add(double x, const double point[3]) {
    if (x > top) rescale(x);
    const double e = std::exp(x - top);
    sums[0] += e;
    for (int a = 0; a < 3; ++a) sums[1 + a] += e * point[a];
  }
};

// One affinity, whose strip may be gone.
DLC_DEVICE double affinity_at(const AssignmentProblem& p, int64_t b, int64_t i, int64_t j) {
  const AssignmentAffinity& a = p.affinity;
  const int64_t row = p.n * b + i, column = p.m * b + j;
  if (a.channels < 0) return a.source[row * p.m + j];
  double sum = 0.0;
  for (int64_t c = 0; c < a.channels; ++c)
    sum += static_cast<double>(a.source[row * a.channels + c]) * a.target[column * a.channels + c];
  return sum + a.source_bias[row] + a.target_bias[column];
}

// The flagged jobs again. A warp takes a row (side 0) or a column (side 1) at a time.
template <int values>
__global__ void __launch_bounds__(kThreads) careful_kernel(Sweep s, int side) {
  const int64_t job = blockIdx.x, b = job % s.problem.batch, n = s.problem.n, m = s.problem.m;
  if (!s.flags[job]) return;
  const int64_t size = side ? m : n, others = side ? n : m;
  for (int64_t at = threadIdx.x / 32; at < size; at += kWarps) {
    RunningSums running;
    for (int64_t other = threadIdx.x % 32; other < others; other += 32) {
      const int64_t i = side ? other : at, j = side ? at : other;
      const double affinity = affinity_at(s.problem, b, i, j);
      if (affinity <= kAbsent) continue;
      double q[3], p[3], distance2 = 0.0;
      for (int a = 0; a < 3; ++a) {
        q[a] = s.clouds.target[3 * m * b + m * a + j], p[a] = s.clouds.source[3 * (n * b + i) + a];
        const double d = s.clouds.moved[3 * (n * job + i) + a] - q[a];
        distance2 += d * d;
      }
      running.add(affinity - s.problem.outlier[b] - s.problem.sharpness[b] * distance2, side ? p : q);
    }
    double top = running.top;
    for (int step = 16; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(~0u, top, step);
      top = other > top ? other : top;
    }
    running.rescale(top);
    for (double& sum : running.sums)
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 != 0) continue;
    const double total = running.sums[0] + std::exp(-top);
    s.logs[side][job * size + at] = static_cast<float>(top + std::log(total));
    for (int k = 0; k < values; ++k)
      s.shares[side][(job * size + at) * values + k] = static_cast<float>(running.sums[k] / total);
  }
}

// One block a job: its energy and its pose.
template <bool moments>
__global__ void __launch_bounds__(kThreads) finish_kernel(Sweep s, double* energy, double* poses_after) {
  constexpr int values = moments ? 4 : 1;
  const int64_t job = blockIdx.x, b = job % s.problem.batch, n = s.problem.n, m = s.problem.m;
  const double half = s.problem.both_ways ? 0.5 : 1.0, outlier = s.problem.outlier[b];
  double terms[1] = {0.0};
  ShareMoments sums;
  for (int side = 0; side < (s.problem.both_ways ? 2 : 1); ++side) {
    const int64_t size = side ? m : n;
    const float* const weights = side ? s.problem.target_weight + m * b : s.problem.source_weight + n * b;
    for (int64_t i = threadIdx.x; i < size; i += kThreads) {
      const double weight = half * weights[i];
      terms[0] -= weight * (s.logs[side][job * size + i] + outlier);
      if constexpr (moments) {
        const float* const share = s.shares[side] + (job * size + i) * values;
        const double other[3] = {share[1], share[2], share[3]};
        double point[3];
        for (int a = 0; a < 3; ++a)
          point[a] = side ? s.clouds.target[3 * m * b + m * a + i] : s.clouds.source[3 * (n * b + i) + a];
        if (side) sums.add_column(weight, share[0], other, point);
        else sums.add_row(weight, share[0], other, point);
      }
    }
  }
  block_sums(terms);
  if (threadIdx.x == 0) energy[job] = terms[0];
  if constexpr (moments) {
    double all[16] = {sums.mass};
    for (int a = 0; a < 3; ++a) all[1 + a] = sums.p[a], all[4 + a] = sums.q[a];
    for (int a = 0; a < 9; ++a) all[7 + a] = sums.qp[a];
    block_sums(all);
    if (threadIdx.x != 0) return;
    sums.mass = all[0];
    for (int a = 0; a < 3; ++a) sums.p[a] = all[1 + a], sums.q[a] = all[4 + a];
    for (int a = 0; a < 9; ++a) sums.qp[a] = all[7 + a];
    fit_pose(sums, s.centers + 6 * b, s.centers + 6 * b + 3, poses_after + 16 * job);
  }
}

template <bool moments>
void finish(const Call& call, const Sweep& s, const AssignmentAnswer& answer) {
  constexpr int values = moments ? 4 : 1;
  const int64_t jobs = s.problem.num_poses * s.problem.batch, n = s.problem.n, m = s.problem.m;
  const bool both = s.problem.both_ways;
  launch_each(call, jobs * n, combine_kernel<values>, s.row_parts, jobs, s.cut.chunks, n, s.logs[0], s.shares[0],
              s.flags);
  if (both)
    launch_each(call, jobs * m, combine_kernel<values>, s.column_parts, jobs, s.cut.all_tiles, m, s.logs[1],
                s.shares[1], s.flags);
  for (int side = 0; side < (both ? 2 : 1); ++side)
    launch(call, dim3(static_cast<unsigned>(jobs)), dim3(kThreads), careful_kernel<values>, s, side);
  launch(call, dim3(static_cast<unsigned>(jobs)), dim3(kThreads), finish_kernel<moments>, s, answer.energy,
         answer.poses_after);
}

// A sweep over memory that holds all of it but the logs, of which it returns the size, too.
Sweep place(const AssignmentProblem& p, int64_t strip, bool moments, void* memory, std::size_t* size = nullptr) {
  const int64_t jobs = p.num_poses * p.batch, values = moments ? 4 : 1;
  Sweep s{p, {}, Cut(jobs, p.n, p.m, strip), {}, {}, {}, {}, {}, {}};
  std::size_t at = 0;
  const auto take = [&](int64_t count, std::size_t each) {
    void* const taken = static_cast<char*>(memory) + at;
    at += (static_cast<std::size_t>(count) * each + 15) / 16 * 16;
    return taken;
  };
  s.centers = static_cast<double*>(take(6 * p.batch, sizeof(double)));
  s.row_parts = static_cast<float*>(take(jobs * s.cut.chunks * p.n * values, sizeof(float)));
  s.column_parts = static_cast<float*>(take(p.both_ways ? jobs * s.cut.all_tiles * p.m * values : 0, sizeof(float)));
  s.shares[0] = static_cast<float*>(take(jobs * p.n * values, sizeof(float)));
  s.shares[1] = static_cast<float*>(take(jobs * p.m * values, sizeof(float)));
  s.flags = static_cast<int32_t*>(take(jobs, sizeof(int32_t)));
  s.clouds = place_clouds(p, take(static_cast<int64_t>(clouds_bytes(p)), 1));
  if (size) *size = at;
  return s;
}

}  // namespace

std::size_t assignment_bytes(const AssignmentProblem& p, int64_t strip, bool moments) {
  std::size_t size = 0;
  place(p, strip, moments, nullptr, &size);
  return size;
}

void assignment_sweep(Call call, const AssignmentProblem& p, int64_t strip, bool moments, const float* affinity,
                      int64_t first, void* scratch) {
  const int64_t jobs = p.num_poses * p.batch;
  if (jobs == 0) return;
  const OnDevice scope(call);
  const Sweep s = place(p, strip, moments, scratch);
  if (first == 0) {
    make_clouds(call, p, s.clouds, s.centers);
    check(cudaMemsetAsync(s.flags, 0, static_cast<std::size_t>(jobs) * sizeof(int32_t),
                          static_cast<cudaStream_t>(call.stream)), "clearing flags");
  }
  const auto with = moments ? sweep_kernel<true, true> : sweep_kernel<true, false>;
  const auto without = moments ? sweep_kernel<false, true> : sweep_kernel<false, false>;
  launch(call, dim3(static_cast<unsigned>(jobs * s.cut.chunks * s.cut.tiles)), dim3(kThreads),
         p.both_ways ? with : without, s, Strip(p, strip, affinity, first));
}

void assignment_finish(Call call, const AssignmentProblem& p, int64_t strip, const AssignmentAnswer& answer,
                       void* scratch) {
  if (p.num_poses * p.batch == 0) return;
  const OnDevice scope(call);
  Sweep s = place(p, strip, answer.poses_after != nullptr, scratch);
  s.logs[0] = answer.row_logs, s.logs[1] = answer.column_logs;
  if (answer.poses_after) finish<true>(call, s, answer);
  else finish<false>(call, s, answer);
}

}  // namespace cuda
}  // namespace dlc
