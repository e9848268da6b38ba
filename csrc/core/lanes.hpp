// Four doubles that go through the same arithmetic side by side: in one AVX2 register where a function is compiled for
// it, in two or four steps elsewhere, with the same bits either way.
#pragma once
#include <cmath>

#include "core/residuals.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // about passing them to functions; here all are inlined
#endif

namespace dlc {

struct Lanes {
  static constexpr int kCount = 4;
#if defined(__GNUC__)
  typedef double Values __attribute__((vector_size(kCount * sizeof(double))));
#else
  struct Values {
    double values[kCount];
    double& operator[](int i) { return values[i]; }
    double operator[](int i) const { return values[i]; }
    template <class Operation>
    Values with(const Values& other, Operation operation) const {
      Values out;
      for (int i = 0; i < kCount; ++i) out[i] = operation(values[i], other[i]);
      return out;
    }
    friend Values operator+(const Values& a, const Values& b) { return a.with(b, [](double x, double y) { return x + y; }); }
    friend Values operator-(const Values& a, const Values& b) { return a.with(b, [](double x, double y) { return x - y; }); }
    friend Values operator*(const Values& a, const Values& b) { return a.with(b, [](double x, double y) { return x * y; }); }
    friend Values operator/(const Values& a, const Values& b) { return a.with(b, [](double x, double y) { return x / y; }); }
  };
#endif

  Lanes() : v{} {}
  Lanes(double all) : v{all, all, all, all} {}  // implicit on purpose: constants of the shared formulas
  explicit Lanes(const Values& values) : v(values) {}

  double operator[](int i) const { return v[i]; }
  double sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
  Lanes& operator+=(const Lanes& other) {
    v = v + other.v;
    return *this;
  }
  friend Lanes operator+(const Lanes& a, const Lanes& b) { return Lanes(a.v + b.v); }
  friend Lanes operator-(const Lanes& a, const Lanes& b) { return Lanes(a.v - b.v); }
  friend Lanes operator*(const Lanes& a, const Lanes& b) { return Lanes(a.v * b.v); }
  friend Lanes operator/(const Lanes& a, const Lanes& b) { return Lanes(a.v / b.v); }

  Values v;
};

inline Lanes square_root(const Lanes& x) {
  Lanes out;
  for (int i = 0; i < Lanes::kCount; ++i) out.v[i] = std::sqrt(x.v[i]);
  return out;
}

inline Lanes sign_of(const Lanes& x) {
  Lanes out;
  for (int i = 0; i < Lanes::kCount; ++i) out.v[i] = sign_of(x.v[i]);
  return out;
}

inline bool is_moderate(const Lanes& x) {
  bool all = true;
  for (int i = 0; i < Lanes::kCount; ++i) all = all && is_moderate(x.v[i]);
  return all;
}

// Four correspondences share a kernel only where it is the square.
inline Lanes robust_weight(Kernel, double, const Lanes&) { return 1.0; }
inline Lanes robust_cost(Kernel, double, const Lanes& r) { return 0.5 * r * r; }

}  // namespace dlc
