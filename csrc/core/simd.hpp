// Which instruction set the hot loops use, chosen once at run time.
#pragma once

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define DLC_HAS_AVX2 1
#define DLC_AVX2 __attribute__((target("avx2")))
#else
#define DLC_HAS_AVX2 0
#endif

namespace dlc {

// "avx2" or "scalar". The environment variable DLC_REG_SIMD=scalar, read on first use, forces "scalar".
const char* simd_level();

bool use_avx2();

// For tests: choose between the paths in one process. Enabling does nothing on a processor without AVX2.
// Not while another thread searches.
void set_use_avx2(bool enabled);

}  // namespace dlc
