// Conversions between float32 and the storage types, and approximations by the special function unit.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace fused_rnn {

FUSED_RNN_DEVICE float to_float(float value) { return value; }
FUSED_RNN_DEVICE float to_float(BFloat16 value) { return float(value); }
FUSED_RNN_DEVICE float to_float(Float16 value) {
#ifdef FUSED_RNN_EMULATOR
  return float(value);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// Rounds to nearest even. A NaN stays one; which one differs between devices and the emulator.
template <class S>
FUSED_RNN_DEVICE S from_float(float value);
template <>
FUSED_RNN_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
FUSED_RNN_DEVICE BFloat16 from_float<BFloat16>(float value) {
#ifndef FUSED_RNN_EMULATOR
  if constexpr (kCapability >= 80) {
    uint32_t pair;  // an instruction for two is four times as fast as that for one
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
    return from_bits<BFloat16>(pair);
  }
#endif
  return BFloat16(value);
}
template <>
FUSED_RNN_DEVICE Float16 from_float<Float16>(float value) {
#ifdef FUSED_RNN_EMULATOR
  return Float16(value);
#else
  if constexpr (kCapability >= 80) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
    return from_bits<Float16>(pair);
  }
  Float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}

// Two 16-bit numbers in a word.
template <class S>
FUSED_RNN_DEVICE uint32_t pack(float low, float high) {
#ifndef FUSED_RNN_EMULATOR
  if constexpr (kCapability >= 80) {
    uint32_t pair;
    if constexpr (std::is_same_v<S, BFloat16>)
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
#endif
  return to_bits(from_float<S>(low)) | to_bits(from_float<S>(high)) << 16;
}

// To the 10 explicit bits of TF32: nearest, halfway cases away from zero.
FUSED_RNN_DEVICE float round_to_tf32(float value) {
#ifndef FUSED_RNN_EMULATOR
  if constexpr (kCapability >= 80) {
    uint32_t result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return bit_cast<float>(result);
  }
#endif
  return value == value ? bit_cast<float>((bit_cast<uint32_t>(value) + 0x1000u) & ~0x1fffu) : value;
}

// 2^value within 2 ulp; subnormal numbers count as zero.
FUSED_RNN_DEVICE float exp2_approximate(float value) {
#ifdef FUSED_RNN_EMULATOR
  return emu::exp2(value);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#endif
}

// Within 1 ulp; subnormal numbers count as zero.
FUSED_RNN_DEVICE float reciprocal(float value) {
#ifdef FUSED_RNN_EMULATOR
  return emu::reciprocal(value);
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#endif
}

}  // namespace fused_rnn
