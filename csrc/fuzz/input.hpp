// What the fuzz targets make of a fuzzer's bytes: numbers, clouds, directions, poses; and what they hold answers against.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "core/linalg.hpp"
#include "core/simd.hpp"

#define REQUIRE(condition)                                                    \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
      std::abort();                                                           \
    }                                                                         \
  } while (0)

namespace fuzz {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Integers = std::vector<int64_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline std::size_t size(int64_t n) { return static_cast<std::size_t>(n); }

// Where the bytes end a fixed generator goes on, so that few of them may stand for a large cloud.
class Input {
 public:
  Input(const uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() {
    if (at_ != end_) return *at_++;
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<uint8_t>(state_ >> 24);
  }
  bool coin() { return byte() & 1; }
  template <class T>
  T bits() {
    uint8_t raw[sizeof(T)];
    for (std::size_t i = 0; i < sizeof(T); ++i) raw[i] = byte();
    T out;
    std::memcpy(&out, raw, sizeof out);
    return out;
  }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[byte() % choices.size()];
  }

  // Any of the type's finite numbers.
  template <class T>
  T finite() {
    const T x = bits<T>();
    return std::isfinite(x) ? x : T(0);
  }
  // What the Python layer lets through as a positive length: a normal float32.
  float length() { return std::max(std::fabs(finite<float>()), std::numeric_limits<float>::min()); }
  // As a distance that has no limit: at least 0, also infinite, also too small to square.
  float limit(float usual) {
    switch (byte() % 8) {
      case 0: return kInfinity;
      case 1: return std::fabs(finite<float>());
      case 2: return pick({0.0f, 1e-45f, 1e-30f, 1e-22f, 1e19f, 1e30f});
      default: return usual;
    }
  }
  // Points of a cloud: few, or enough for one more level of a tree, or for another block of a sum, up to `most`.
  int64_t count(int64_t most) {
    const int64_t x = byte();
    return std::min(x < 252 ? x % 40 : x == 255 ? 4200 : x == 254 ? 1100 : 100 * x - 25070, most);
  }

 private:
  const uint8_t *at_, *const end_;
  uint32_t state_ = 1;
};

// (n, width) finite numbers: a few bits each on a grid, or any at all, scaled and moved; some of them repeated.
inline Floats numbers(Input& in, int64_t n, int64_t width) {
  const int form = in.byte() % 6;
  const float scale = in.pick({1.0f, 1.0f, 0.0625f, 1e-10f, 1e-22f, 1e-42f, 1e10f, 1e18f, 1e36f});
  const float shift = in.pick({0.0f, 0.0f, 0.0f, 1.0f, 1e3f, -1e6f, 1e15f}) * scale;
  Floats out(size(n * width));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < width; ++c) {
      float x = 0;
      if (form == 0) x = in.finite<float>();
      if (form == 1) x = static_cast<float>(in.bits<int8_t>());
      if (form == 2) x = static_cast<float>(in.bits<int16_t>()) / 256.0f;
      if (form == 3) x = static_cast<float>(in.bits<int8_t>() % 3);
      if (form == 4) x = static_cast<float>(c == 2 ? 0 : in.bits<int16_t>()) / 1024.0f;
      if (form == 5) x = i == 0 || c == 0 ? static_cast<float>(in.bits<int8_t>()) : out[size(i * width)] * 0.5f;
      if (form != 0) x = x * scale + shift;
      const float most = std::numeric_limits<float>::max();
      out[size(i * width + c)] = std::min(std::max(x, -most), most);
    }
  if (!out.empty() && in.byte() % 4 == 0) out[in.byte() % out.size()] = in.finite<float>();
  return out;
}

inline Floats cloud(Input& in, int64_t n) { return numbers(in, n, 3); }

// Numbers of which some are NaN or infinite, where nothing looks at them before.
inline Floats any_numbers(Input& in, int64_t n, int64_t width) {
  Floats out = numbers(in, n, width);
  for (int times = in.byte() % 4; times > 0 && !out.empty(); --times)
    out[in.bits<uint16_t>() % out.size()] = in.bits<float>();
  return out;
}

// Unit vectors as a rule, but nobody makes sure of it.
inline Floats directions(Input& in, int64_t n) {
  Floats out = numbers(in, n, 3);
  if (in.byte() % 4 == 0) return out;
  for (std::size_t i = 0; i < out.size(); i += 3) {
    const double v[3] = {out[i], out[i + 1], out[i + 2]}, length = std::sqrt(dlc::dot(v, v));
    for (std::size_t a = 0; a < 3; ++a) out[i + a] = length > 0 ? static_cast<float>(v[a] / length) : a == 2 ? 1.0f : 0.0f;
  }
  return out;
}

// A length of the cloud's own order, or any.
inline float reach(Input& in, const Floats& points) {
  float span = 0;
  for (const float x : points) span = std::max(span, std::fabs(x - points[0]));
  if (!std::isfinite(span) || !(span > std::numeric_limits<float>::min()) || in.byte() % 8 == 0) return in.length();
  const float length = span * in.pick({0.05f, 0.3f, 0.3f, 1.0f, 2.0f});
  return std::min(std::max(length, std::numeric_limits<float>::min()), std::numeric_limits<float>::max());
}

// A pose near the identity, or far from it, or twelve finite numbers that are no motion at all.
inline void pose(Input& in, double out[16]) {
  const int form = in.byte() % 4;
  if (form == 0) {
    for (int i = 0; i < 12; ++i) out[i] = in.finite<double>();
    out[12] = out[13] = out[14] = 0, out[15] = 1;
    return;
  }
  double xi[6];
  for (double& x : xi) x = in.bits<int8_t>() / (form == 1 ? 1000.0 : 40.0);
  for (int a = 3; a < 6; ++a) xi[a] *= form == 3 ? in.pick({1e6, 1e-9, 1e30, 1e3}) : 1.0;
  dlc::se3_exp(xi, out);
}

// The bytes of answers. NaN has one form here: its sign is nobody's.
class Answer {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    for (T value : values) {
      if (value != value) value = std::numeric_limits<T>::quiet_NaN();
      held_.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
  bool operator==(const Answer& other) const { return held_ == other.held_; }

 private:
  std::string held_;
};

// body(threads, answer): the same bits with all instructions and without AVX2, then now and then from three threads, for
// which a busy machine waits longer than the rest takes.
template <class Body>
void same_twice(Input& in, const Body& body) {
  const int threads = in.byte() % 32 == 0 ? 3 : 1;
  Answer first, second;
  body(1, first);
  dlc::set_use_avx2(false);
  body(threads, second);
  dlc::set_use_avx2(true);
  REQUIRE(first == second);
}

inline bool all_finite(const Floats& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}
inline bool all_finite(const Doubles& values) {
  return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
}

}  // namespace fuzz
