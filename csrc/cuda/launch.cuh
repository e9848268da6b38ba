// What every .cu file needs of the runtime: errors as exceptions, the device of a call, launches, and block sums.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device.hpp"

namespace dlc {
namespace cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

class OnDevice {  // the thread's device for the length of a scope
 public:
  explicit OnDevice(const Call& call) : device_(call.device) {
    check(cudaGetDevice(&before_), "no CUDA device");
    if (device_ != before_) check(cudaSetDevice(device_), "choosing a CUDA device");
  }
  ~OnDevice() {
    if (device_ != before_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, before_ = 0;
};

constexpr int kThreads = 128;  // of every block
constexpr int kWarps = kThreads / 32;

inline unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>((work + kThreads - 1) / kThreads);
}

template <class... Parameters, class... Arguments>
void launch(const Call& call, dim3 grid, dim3 block, void (*kernel)(Parameters...), Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(call.stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}

// One thread for each piece of work.
template <class... Parameters, class... Arguments>
void launch_each(const Call& call, int64_t work, void (*kernel)(Parameters...), Arguments... arguments) {
  launch(call, dim3(blocks_for(work)), dim3(kThreads), kernel, arguments...);
}

#if defined(__CUDACC__)
#define DLC_DEVICE __device__ __forceinline__
#else
#define DLC_DEVICE inline
#endif

DLC_DEVICE int64_t thread_number() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Sums over the block, for all of its threads.
template <int count>
DLC_DEVICE void block_sums(double (&v)[count]) {
  __shared__ double warps[kWarps][count];
  __syncthreads();
  for (int k = 0; k < count; ++k) {
    for (int step = 16; step > 0; step /= 2) v[k] += __shfl_xor_sync(~0u, v[k], step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32][k] = v[k];
  }
  __syncthreads();
  for (int k = 0; k < count; ++k) {
    v[k] = 0.0;
    for (int w = 0; w < kWarps; ++w) v[k] += warps[w][k];
  }
}

}  // namespace cuda
}  // namespace dlc
