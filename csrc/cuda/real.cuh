// The number that kernels compute in: float32. kFast: exp and tanh are those of the special function unit.
#pragma once

#include <cmath>

#include "numbers.cuh"

namespace fused_rnn {

// Errors, without kFast: 2 ulp. With it: of exp(x), 2^-22 (1 + |x|) of the result, so that a sigmoid is off by less
// than 2^-22; of tanh, 2^-22 of 1. That is below a hundredth of what rounding h to TF32 or 16 bits loses.
template <bool kFast>
struct RealOf {
  float v;

  RealOf() = default;
  FUSED_RNN_DEVICE RealOf(float v) : v(v) {}

  friend FUSED_RNN_DEVICE RealOf operator+(RealOf a, RealOf b) { return a.v + b.v; }
  friend FUSED_RNN_DEVICE RealOf operator-(RealOf a, RealOf b) { return a.v - b.v; }
  friend FUSED_RNN_DEVICE RealOf operator*(RealOf a, RealOf b) { return a.v * b.v; }
  friend FUSED_RNN_DEVICE RealOf operator-(RealOf a) { return -a.v; }
  // For numerators of 1, as in sigmoid: no second rounding.
  friend FUSED_RNN_DEVICE RealOf operator/(RealOf a, RealOf b) { return a.v * reciprocal(b.v); }
  friend FUSED_RNN_DEVICE RealOf exp(RealOf a) {
    if constexpr (kFast) return exp2_approximate(kLog2E * a.v);
    return ::expf(a.v);
  }
  friend FUSED_RNN_DEVICE RealOf tanh(RealOf a) {
    if constexpr (kFast) return fmaf(2.0f, reciprocal(1.0f + exp2_approximate(-2 * kLog2E * a.v)), -1.0f);
    return ::tanhf(a.v);
  }
  friend FUSED_RNN_DEVICE RealOf rectified(RealOf value, RealOf by) { return by.v <= 0.0f ? 0.0f : value.v; }

 private:
  static constexpr float kLog2E = 1.44269504f;
};

using Real = RealOf<false>;

// The one that a cell computes in.
template <class Cell>
using NumberOf = decltype(Cell::State::h);

}  // namespace fused_rnn
