// Numbers side by side in the loops of soft assignments, as many whatever the instruction set, so that all sum alike.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define DLC_INLINE inline __attribute__((always_inline))
#else
#define DLC_INLINE inline
#endif

namespace dlc {

constexpr int kLanes = 8;

#if defined(__GNUC__) || defined(__clang__)
using Floats = float __attribute__((vector_size(4 * kLanes)));  // split where the registers are narrower
using Words = uint32_t __attribute__((vector_size(4 * kLanes)));
#else
using Floats = float;
using Words = uint32_t;
#endif
constexpr int kWidth = sizeof(Floats) / sizeof(float);

DLC_INLINE void load(const float* from, Floats& to) { std::memcpy(&to, from, sizeof to); }
DLC_INLINE void store(const Floats& from, float* to) { std::memcpy(to, &from, sizeof from); }

}  // namespace dlc
