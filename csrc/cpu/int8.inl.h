// Products of int8: four of them to a lane, summed in int32, which is exact. Weights have a scale for each row; so have
// the rows that are multiplied by them, found when they become int8. Included by each instruction set's source file.
#pragma once

#ifdef __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
#endif

#include "operands.inl.h"

namespace fused_rnn {
namespace {

template <>
struct Factor<int8_t> {
  using A = int32_t;
  static constexpr int kDepth = 4;
  static constexpr int kWords = 1;
#if defined(__AVX512VNNI__) || defined(FUSED_RNN_UNSIGNED)
  static constexpr int kOffset = 128;  // added to the numbers of packed weights: VNNI takes them unsigned
#else
  static constexpr int kOffset = 0;
#endif
  FUSED_RNN_INLINE static Vec<int32_t> broadcast(const int8_t* word) {
    int32_t bits;
    std::memcpy(&bits, word, sizeof(bits));
    return Vec<int32_t>(bits);
  }
  FUSED_RNN_INLINE static Vec<int32_t> add_product(Vec<int32_t> sum, Vec<int32_t> a, Vec<int32_t> b) {
    using Lanes = Vec<int32_t>::Lanes;
#if defined(__AVX512VNNI__)
    return Vec<int32_t>(
        bit_cast<Lanes>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum.v), bit_cast<__m512i>(b.v), bit_cast<__m512i>(a.v))));
#elif defined(__AVX2__) && FUSED_RNN_VECTOR_BYTES == 32
    // |a| times b with the sign of a: no sum of two exceeds 16 bits.
    const __m256i left = bit_cast<__m256i>(a.v), right = bit_cast<__m256i>(b.v);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(left), _mm256_sign_epi8(right, left));
    return sum + Vec<int32_t>(bit_cast<Lanes>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
#elif defined(__ARM_FEATURE_DOTPROD) && FUSED_RNN_VECTOR_BYTES == 16
    return Vec<int32_t>(
        bit_cast<Lanes>(vdotq_s32(bit_cast<int32x4_t>(sum.v), bit_cast<int8x16_t>(b.v), bit_cast<int8x16_t>(a.v))));
#else
    const auto high = [](Vec<int32_t> x, int i) { return bit_cast<Words>(x.v) << (24 - 8 * i); };
    FUSED_RNN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Words right = high(b, i);
      sum.v +=
          (bit_cast<Lanes>(high(a, i)) >> 24) * (kOffset ? bit_cast<Lanes>(right >> 24) : bit_cast<Lanes>(right) >> 24);
    }
    return sum;
#endif
  }
};

template <class F>
constexpr bool kQuantized = std::is_same<F, int8_t>::value;

// Rows become their numbers divided by a scale, the row's largest divided by 127, rounded to the nearest. A row with
// NaN or an infinity gets the scale NaN, and so do its products. `to` has a multiple of kLanes numbers.
FUSED_RNN_INLINE RowScale quantize(const float* row, int64_t n, int8_t* to) {
  using V = Vec<float>;
  using Bits = Real<float>::Bits;
  constexpr int64_t kLanes = V::kLanes;
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  V largest(0.0f), nothing(0.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const V x = load<float>(row + i, int(least(kLanes, n - i)));
    largest = at_least(V(bit_cast<FloatLanes>(bit_cast<Bits>(x.v) & 0x7fffffff)), largest);
    nothing += x * V(0.0f);
  }
  float sizes[kLanes], zeros[kLanes];
  store(sizes, largest), store(zeros, nothing);
  for (int64_t k = kLanes / 2; k > 0; k /= 2)
    for (int64_t i = 0; i < k; ++i) {
      sizes[i] = sizes[i] > sizes[i + k] ? sizes[i] : sizes[i + k];
      zeros[i] += zeros[i + k];
    }
  constexpr float kLeast = 0x1p-100f;  // smaller numbers are zeros: their inverse would not be finite
  const V inverse(sizes[0] > kLeast ? 127.0f / sizes[0] : 0.0f), shifter(Real<float>::kShifter);
  Bits sum{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const V x = load<float>(row + i, int(least(kLanes, n - i)));
    const Bits numbers = bit_cast<Bits>((x * inverse + shifter).v) - bit_cast<Bits>(shifter.v);
    sum += numbers;
    const Bytes bytes = __builtin_convertvector(numbers, Bytes);
    std::memcpy(to + i, &bytes, sizeof(bytes));
  }
  int32_t total = 0;
  for (int64_t i = 0; i < kLanes && Factor<int8_t>::kOffset; ++i) total += sum[i];
  return {sizes[0] / 127.0f + zeros[0], Factor<int8_t>::kOffset * total};
}

}  // namespace
}  // namespace fused_rnn
