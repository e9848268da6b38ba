// A CUDA runtime that runs kernels on the host, for tests where there is no GPU. The kernels are the ones the GPU runs,
// compiled as C++; a block's threads are fibers that take turns at barriers, so that indices, barriers, shuffles and
// reductions are tested, though neither races between warps nor speed. Blocks run one after another. A barrier or a
// shuffle that part of the threads never reaches ends the program with a message.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define DLC_EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInsufficientDriver = 35 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid configuration" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr std::size_t kStackBytes = 1 << 17;
constexpr unsigned kWarp = 32;
enum class Waiting { kNo, kForWarp, kForBlock, kDone };

struct Fiber {  // lives on from block to block; ucontext makes it, _setjmp switches without a system call
  jmp_buf place;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Waiting> state;
  std::vector<uint64_t> exchange;  // one word a thread, for shuffles
  jmp_buf scheduler;
  std::function<void()> body;
  unsigned running = 0;
};
inline Block& block() {
  static Block the_block;
  return the_block;
}

inline void wait(Waiting why) {
  Block& b = block();
  b.state[b.running] = why;
  if (!_setjmp(b.fibers[b.running]->place)) _longjmp(b.scheduler, 1);
}

inline void live() {
  for (;;) {
    block().body();
    wait(Waiting::kDone);
  }
}

inline void resume(unsigned thread) {
  Block& b = block();
  b.running = thread;
  if (_setjmp(b.scheduler)) return;
  if (thread < b.fibers.size()) _longjmp(b.fibers[thread]->place, 1);
  b.fibers.emplace_back(new Fiber);
  Fiber& fiber = *b.fibers.back();
  fiber.stack.reset(new char[kStackBytes]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, live, 0);
  setcontext(&fiber.start);
}

inline void run_block(unsigned threads) {
  Block& b = block();
  b.exchange.assign(threads, 0), b.state.assign(threads, Waiting::kNo);
  const auto all = [&](unsigned begin, unsigned end, Waiting why) {
    return std::all_of(b.state.begin() + begin, b.state.begin() + end,
                       [why](Waiting s) { return s == why || s == Waiting::kDone; });
  };
  for (bool done = false; !done;) {
    bool moved = false;
    for (unsigned first = 0; first < threads; first += kWarp) {
      const unsigned end = std::min(first + kWarp, threads);
      for (;;) {
        for (unsigned t = first; t < end; ++t) {
          if (b.state[t] != Waiting::kNo) continue;
          threadIdx = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
          resume(t);
          moved = true;
        }
        if (all(first, end, Waiting::kDone) || !all(first, end, Waiting::kForWarp)) break;
        for (unsigned t = first; t < end; ++t)
          if (b.state[t] == Waiting::kForWarp) b.state[t] = Waiting::kNo;
      }
    }
    done = all(0, threads, Waiting::kDone);
    if (!done && all(0, threads, Waiting::kForBlock)) {
      for (Waiting& s : b.state)
        if (s == Waiting::kForBlock) s = Waiting::kNo;
    } else if (!done && !moved) {
      std::fprintf(stderr, "emulated CUDA: part of a block or of a warp never reaches a barrier\n");
      std::abort();
    }
  }
}

template <class T>
T exchange(T value, unsigned from) {  // of the warp's lane `from`
  static_assert(sizeof(T) <= sizeof(uint64_t), "one word");
  Block& b = block();
  const unsigned me = b.running, first = me / kWarp * kWarp;
  std::memcpy(&b.exchange[me], &value, sizeof value);
  wait(Waiting::kForWarp);
  T answer;
  std::memcpy(&answer, &b.exchange[first + from % kWarp], sizeof answer);
  wait(Waiting::kForWarp);
  return answer;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::Waiting::kForBlock); }
inline void __syncwarp(unsigned = ~0u) { emulator::wait(emulator::Waiting::kForWarp); }
inline void __threadfence() {}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, emulator::block().running % emulator::kWarp ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulator::exchange(value, static_cast<unsigned>(lane));
}
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  *at = std::min(before, value);
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  const unsigned threads = config->blockDim.x * config->blockDim.y * config->blockDim.z;
  if (threads == 0 || threads > 1024 || config->gridDim.y > 65535 || config->gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  emulator::block().body = [&] { kernel(arguments...); };
  blockDim = config->blockDim, gridDim = config->gridDim;
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulator::run_block(threads);
  return cudaSuccess;
}
