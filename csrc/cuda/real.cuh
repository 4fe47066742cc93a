// The number that kernels compute in: float32, with functions of the device that are good to 2 ulp.
#pragma once

#include <cmath>

#include "ptx.cuh"

namespace fused_rnn {

struct Real {
  float v;
  Real() = default;
  FUSED_RNN_DEVICE Real(float v) : v(v) {}
};

FUSED_RNN_DEVICE Real operator+(Real a, Real b) { return a.v + b.v; }
FUSED_RNN_DEVICE Real operator-(Real a, Real b) { return a.v - b.v; }
FUSED_RNN_DEVICE Real operator*(Real a, Real b) { return a.v * b.v; }
FUSED_RNN_DEVICE Real operator-(Real a) { return -a.v; }
// For numerators of 1, as in sigmoid: no second rounding.
FUSED_RNN_DEVICE Real operator/(Real a, Real b) { return a.v * reciprocal(b.v); }
FUSED_RNN_DEVICE Real exp(Real a) { return ::expf(a.v); }
FUSED_RNN_DEVICE Real tanh(Real a) { return ::tanhf(a.v); }

}  // namespace fused_rnn
