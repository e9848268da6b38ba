// The least a test program needs: CHECK counts failures and says where; main returns failures().
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

inline int& failures() {
  static int count = 0;
  return count;
}

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      if (++failures() <= 20) std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    }                                                                                \
  } while (0)

namespace shapes {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline const std::vector<std::string>& names() {
  static const std::vector<std::string> all{"uniform", "surface", "grid",  "duplicates", "equal",
                                            "line",    "plane",   "tiny",  "offset",     "mixed"};
  return all;
}

// (n, 3) points of the named shape.
inline std::vector<float> points(const std::string& shape, int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  const auto unit = [&] { return static_cast<float>(random() >> 8) / 16777216.0f; };
  std::vector<float> out;
  for (int64_t i = 0; i < n; ++i) {
    float p[3] = {unit(), unit(), unit()};
    if (shape == "surface") p[2] = 0.3f * std::sin(7 * p[0]) * std::cos(5 * p[1]);
    if (shape == "grid") for (float& x : p) x = std::floor(x * 8);  // many equal distances
    if (shape == "duplicates") for (float& x : p) x = std::floor(x * 3) / 3;
    if (shape == "equal") for (float& x : p) x = 0.7f;
    if (shape == "line") p[1] = p[2] = p[0];
    if (shape == "plane") p[1] = 2.5f;
    if (shape == "tiny") for (float& x : p) x *= 1e-22f;  // squares are subnormal or zero
    if (shape == "offset") for (float& x : p) x += 1000;  // coarse rounding: ties
    if (shape == "mixed" && i % 3) for (float& x : p) x = x * 1e-3f + 0.5f;
    out.insert(out.end(), p, p + 3);
  }
  return out;
}

}  // namespace shapes
