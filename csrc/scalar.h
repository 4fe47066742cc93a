// The storage types and the type that each is computed in. The 16-bit ones convert by bit arithmetic, rounding to
// nearest even, so that they need no compiler or processor support.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"

namespace fused_rnn {

template <class To, class From>
FUSED_RNN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  FUSED_RNN_INLINE explicit BFloat16(float value) {
    const uint32_t u = bit_cast<uint32_t>(value);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? uint16_t(0x7fc0) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  FUSED_RNN_INLINE explicit operator float() const { return bit_cast<float>(uint32_t(bits) << 16); }
};

struct Float16 {
  uint16_t bits;

  Float16() = default;
  FUSED_RNN_INLINE explicit Float16(float value) {
    const uint32_t u = bit_cast<uint32_t>(value);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;  // NaN
    } else if (magnitude >= 0x477ff000u) {
      half = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
      // Below 2^-14 the result is subnormal. Adding 0.5, whose last place is 2^-24, rounds to a multiple of 2^-24.
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // rebias 127 to 15, round
    }
    bits = uint16_t(sign | half);
  }
  FUSED_RNN_INLINE explicit operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    float value;
    if (magnitude >= 0x7c00u) {
      value = bit_cast<float>(0x7f800000u | ((magnitude & 0x3ffu) << 13));  // infinity or NaN
    } else if (magnitude < 0x400u) {
      value = float(magnitude) * 0x1p-24f;  // subnormal
    } else {
      value = bit_cast<float>((magnitude << 13) + 0x38000000u);
    }
    return bit_cast<float>(bit_cast<uint32_t>(value) | sign);
  }
};

// The type that a storage type is computed and accumulated in.
template <class S>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class S>
using accumulate_t = typename Accumulate<S>::type;

}  // namespace fused_rnn
