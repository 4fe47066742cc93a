// Products of int8: four of them to a lane, summed in int32, which is exact. Weights have a scale for each row; so have
// the rows that are multiplied by them, found when they become int8. Included by each instruction set's source file.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <immintrin.h>
#endif

#include "operands.inl.h"

// VNNI's sum of products of unsigned by signed bytes, where the set has it for vectors of its width.
#if defined(__AVX512VNNI__) && FUSED_RNN_VECTOR_BYTES == 64
#define FUSED_RNN_VNNI _mm512_dpbusd_epi32
#elif defined(__AVXVNNI__) && FUSED_RNN_VECTOR_BYTES == 32
#define FUSED_RNN_VNNI _mm256_dpbusd_avx_epi32
#endif

namespace fused_rnn {
namespace {

template <>
struct Factor<int8_t> {
  using A = int32_t;
  using Left = int8_t;
  static constexpr int kDepth = 4;
  static constexpr int kWords = 1;  // AMX multiplies 16 at once: left-hand rows end with zeros
  static constexpr int kParts = 1;
#if defined(FUSED_RNN_VNNI) || defined(FUSED_RNN_AMX) || defined(FUSED_RNN_UNSIGNED)
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
#if defined(FUSED_RNN_VNNI)
    typedef long long Bytes __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
    return Vec<int32_t>(
        bit_cast<Lanes>(FUSED_RNN_VNNI(bit_cast<Bytes>(sum.v), bit_cast<Bytes>(b.v), bit_cast<Bytes>(a.v))));
#elif defined(__AVX2__) && FUSED_RNN_VECTOR_BYTES == 32
    // |a| times b with the sign of a: no sum of two exceeds 16 bits.
    static_assert(kOffset == 0, "b must be signed");
    const __m256i left = bit_cast<__m256i>(a.v), right = bit_cast<__m256i>(b.v);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(left), _mm256_sign_epi8(right, left));
    return sum + Vec<int32_t>(bit_cast<Lanes>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
#elif defined(__ARM_FEATURE_DOTPROD) && FUSED_RNN_VECTOR_BYTES == 16
    static_assert(kOffset == 0, "b must be signed");
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

// Whether rows of both matrices have scales.
template <class F>
constexpr bool kScaled = std::is_same<F, int8_t>::value;
// Whether weights come in panels.
template <class F>
constexpr bool kQuantized = kScaled<F> || std::is_same<F, Widened>::value;

// Each number as the nearest integer, of two the even one. The conversions of instruction sets see products that are
// rounded already: to add a large number to them, as exp does, may be one instruction with the multiplication.
FUSED_RNN_INLINE Real<float>::Bits nearest(FloatLanes x) {
  Real<float>::Bits numbers;
  const auto in_pieces = [&](auto piece, const auto& convert) __attribute__((always_inline)) {
    FUSED_RNN_UNROLL
    for (size_t i = 0; i < sizeof(x) / sizeof(piece); ++i) {
      std::memcpy(&piece, reinterpret_cast<const char*>(&x) + i * sizeof(piece), sizeof(piece));
      const auto converted = convert(piece);
      std::memcpy(reinterpret_cast<char*>(&numbers) + i * sizeof(piece), &converted, sizeof(piece));
    }
  };
#if defined(__AVX512F__)
  in_pieces(__m512(), [](__m512 piece) __attribute__((always_inline)) { return _mm512_cvtps_epi32(piece); });
#elif defined(__AVX2__)
  in_pieces(__m256(), [](__m256 piece) __attribute__((always_inline)) { return _mm256_cvtps_epi32(piece); });
#elif defined(__SSE2__)
  in_pieces(__m128(), [](__m128 piece) __attribute__((always_inline)) { return _mm_cvtps_epi32(piece); });
#elif defined(__aarch64__)
  in_pieces(float32x4_t(), [](float32x4_t piece) __attribute__((always_inline)) { return vcvtnq_s32_f32(piece); });
#else
  const FloatLanes shifter = FloatLanes{} + Real<float>::kShifter;
  numbers = bit_cast<Real<float>::Bits>(x + shifter) - bit_cast<Real<float>::Bits>(shifter);
#endif
  return numbers;
}

// The largest lane, or with kAdds the sum of all.
template <bool kAdds, class Lanes>
FUSED_RNN_INLINE int32_t reduced(Lanes lanes) {
  constexpr size_t kBytes = sizeof(Lanes) / 2;
  if constexpr (kBytes >= 8) {
    typedef int32_t Half __attribute__((vector_size(kBytes)));
    struct {
      Half low, high;
    } halves;
    std::memcpy(&halves, &lanes, sizeof(lanes));
    if constexpr (kAdds)
      return reduced<kAdds>(halves.low + halves.high);
    else
      return reduced<kAdds>(halves.low > halves.high ? halves.low : halves.high);
  } else {
    return kAdds ? lanes[0] + lanes[1] : lanes[0] > lanes[1] ? lanes[0] : lanes[1];
  }
}

// Rows become their numbers divided by a scale, the row's largest divided by 127, rounded to the nearest. A row with
// NaN or an infinity gets the scale NaN, and so do its products. `to` has `padded` numbers, a multiple of kLanes, zeros
// after the row.
FUSED_RNN_INLINE RowScale quantize(const float* row, int64_t n, int8_t* to, int64_t padded) {
  using V = Vec<float>;
  using Bits = Real<float>::Bits;
  constexpr int64_t kLanes = V::kLanes;
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  Bits size{};  // as bits, numbers without a sign are in order, and NaN comes last
  for (int64_t i = 0; i < n; i += kLanes) {
    const Bits x = bit_cast<Bits>(load<float>(row + i, int(least(kLanes, n - i))).v) & 0x7fffffff;
    size = x > size ? x : size;
  }
  const int32_t bits = reduced<false>(size);
  const float largest = bit_cast<float>(bits);
  constexpr float kLeast = 0x1p-100f;  // smaller numbers are zeros: their inverse would not be finite
  const V inverse(largest > kLeast ? 127.0f / largest : 0.0f);
  Bits sum{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const V x = load<float>(row + i, int(least(kLanes, n - i)));
    const Bits numbers = nearest((x * inverse).v);
    sum += numbers;
    const Bytes bytes = __builtin_convertvector(numbers, Bytes);
    std::memcpy(to + i, &bytes, sizeof(bytes));
  }
  const int64_t written = ceil_div(n, kLanes) * kLanes;
  if (padded > written) std::memset(to + written, 0, size_t(padded - written));
  constexpr int32_t kOffset = Factor<int8_t>::kOffset, kInfinity = 0x7f800000;
  return {bits >= kInfinity ? NAN : largest / 127.0f, kOffset ? kOffset * reduced<true>(sum) : 0};
}

}  // namespace
}  // namespace fused_rnn
