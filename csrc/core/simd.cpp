#include "core/simd.hpp"

#include <cstdlib>
#include <cstring>

namespace dlc {
namespace {

bool has_avx2() {
#if DLC_HAS_AVX2
  return __builtin_cpu_supports("avx2") != 0;
#else
  return false;
#endif
}

bool& avx2_enabled() {
  static bool enabled = [] {
    const char* wish = std::getenv("DLC_REG_SIMD");
    return has_avx2() && !(wish && std::strcmp(wish, "scalar") == 0);
  }();
  return enabled;
}

}  // namespace

bool use_avx2() { return avx2_enabled(); }

const char* simd_level() { return use_avx2() ? "avx2" : "scalar"; }

void set_use_avx2(bool enabled) { avx2_enabled() = enabled && has_avx2(); }

}  // namespace dlc
