// A vector of kVectorBytes and its arithmetic, on the compilers' vector extension. Included by each instruction set's
// source file, in an unnamed namespace: the same text compiles to other instructions in each.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "../cells.h"
#include "../scalar.h"

// Loops over an array of registers: only what is unrolled early stays out of memory.
#ifdef __clang__
#define FUSED_RNN_UNROLL _Pragma("unroll")
#else
#define FUSED_RNN_UNROLL _Pragma("GCC unroll 32")
#endif

namespace fused_rnn {
namespace {

// The vector types of a scalar, and the constants of exp and tanh.
template <class A>
struct Real;
template <>
struct Real<float> {
  typedef float Lanes __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
  typedef uint32_t UnsignedBits __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));  // for sums that may wrap
  static constexpr int kFraction = 23;                                                 // bits of the fraction
  static constexpr float kShifter = 0x1.8p23f;  // adding it rounds to an integer, which its lowest bits then hold
  static constexpr float kLn2 = 0x1.62e43p-1f;
  static constexpr float kLn2High = 0x1.62e4p-1f;            // in two parts; the first has few bits, so that an integer
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;          //   times it is exact
  static constexpr float kExpMin = -87.0f, kExpMax = 88.0f;  // exp stays finite and normal between these
  static constexpr float kTanhMax = 10.0f;                   // tanh rounds to 1 from here on
  // expm1(r) = r + r^2 (these, times 1, r, r^2 ...) on |r| <= ln(2)/2, with the least relative error, below 2^-26
  static constexpr float kExpm1[] = {0x1p-1f, 0x1.5554bp-3f, 0x1.555486p-5f, 0x1.1227fcp-7f, 0x1.6d9908p-10f};
};
template <>
struct Real<double> {
  typedef double Lanes __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
  typedef uint64_t UnsignedBits __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
  static constexpr int kFraction = 52;
  static constexpr double kShifter = 0x1.8p52;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  static constexpr double kLn2High = 0x1.62e42fep-1;
  static constexpr double kLn2Low = 0x1.f473de6af278fp-30;
  static constexpr double kExpMin = -708.0, kExpMax = 709.0;
  static constexpr double kTanhMax = 20.0;
  // Of Taylor's series
  static constexpr double kExpm1[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                      1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                      1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

template <>
struct Real<int32_t> {  // sums of products of int8
  typedef int32_t Lanes __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
};

template <class A>
struct Vec {
  using Lanes = typename Real<A>::Lanes;
  static constexpr int kLanes = FUSED_RNN_VECTOR_BYTES / sizeof(A);
  Lanes v;

  Vec() = default;
  FUSED_RNN_INLINE Vec(A scalar) : Vec(scalar, std::make_index_sequence<kLanes>()) {}
  FUSED_RNN_INLINE explicit Vec(Lanes lanes) : v(lanes) {}

  friend FUSED_RNN_INLINE Vec operator-(Vec a) { return Vec(-a.v); }
  friend FUSED_RNN_INLINE Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend FUSED_RNN_INLINE Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend FUSED_RNN_INLINE Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend FUSED_RNN_INLINE Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
  FUSED_RNN_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }

 private:
  // One initialiser a lane is what the compilers take for a broadcast.
  template <size_t... kLane>
  FUSED_RNN_INLINE Vec(A scalar, std::index_sequence<kLane...>) : v{((void)kLane, scalar)...} {}
};

// ---- The 16-bit types, a vector at a time: scalar.h's arithmetic ----

using FloatLanes = Real<float>::Lanes;
typedef uint32_t Words __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES)));
typedef uint16_t HalfWords __attribute__((vector_size(FUSED_RNN_VECTOR_BYTES / 2)));

FUSED_RNN_INLINE FloatLanes widened(BFloat16, HalfWords bits) {
  return bit_cast<FloatLanes>(__builtin_convertvector(bits, Words) << 16);
}

FUSED_RNN_INLINE HalfWords narrowed(BFloat16, FloatLanes value) {
#ifdef __AVX512BF16__
  return bit_cast<HalfWords>(_mm512_cvtneps_pbh(value));
#else
  const Words u = bit_cast<Words>(value);
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Words bits = (u & 0x7fffffffu) > 0x7f800000u ? Words{} + 0x7fc0u : rounded;
  return __builtin_convertvector(bits, HalfWords);
#endif
}

FUSED_RNN_INLINE FloatLanes widened(Float16, HalfWords half) {
#ifdef __AVX512F__
  return _mm512_cvtph_ps(bit_cast<__m256i>(half));
#else
  const Words bits = __builtin_convertvector(half, Words);
  const Words magnitude = bits & 0x7fffu;
  const Words special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  const Words subnormal = bit_cast<Words>(__builtin_convertvector(bit_cast<Real<float>::Bits>(magnitude), FloatLanes) *
                                          (FloatLanes{} + 0x1p-24f));
  const Words small = magnitude < 0x400u ? subnormal : (magnitude << 13) + 0x38000000u;
  const Words value = magnitude >= 0x7c00u ? special : small;
  return bit_cast<FloatLanes>(value | ((bits & 0x8000u) << 16));
#endif
}

FUSED_RNN_INLINE HalfWords narrowed(Float16, FloatLanes value) {
#ifdef __AVX512F__
  return bit_cast<HalfWords>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  const Words u = bit_cast<Words>(value);
  const Words magnitude = u & 0x7fffffffu;
  const Words subnormal = bit_cast<Words>(bit_cast<FloatLanes>(magnitude) + (FloatLanes{} + 0.5f)) - 0x3f000000u;
  const Words normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Words finite = magnitude < 0x38800000u ? subnormal : normal;
  const Words large = magnitude > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  const Words half = magnitude >= 0x477ff000u ? large : finite;
  return __builtin_convertvector(half | ((u >> 16) & 0x8000u), HalfWords);
#endif
}

// ---- Memory: the first n lanes, converted between the storage type and A ----

// The lanes of a vector of A as they are stored in S.
template <class A, class S>
struct Stored {
  using Lanes = HalfWords;
  FUSED_RNN_INLINE static Vec<A> to(Lanes lanes) { return Vec<A>(widened(S(), lanes)); }
  FUSED_RNN_INLINE static Lanes from(Vec<A> a) { return narrowed(S(), a.v); }
};
template <class A>
struct Stored<A, A> {
  using Lanes = typename Vec<A>::Lanes;
  FUSED_RNN_INLINE static Vec<A> to(Lanes lanes) { return Vec<A>(lanes); }
  FUSED_RNN_INLINE static Lanes from(Vec<A> a) { return a.v; }
};

// The first n elements of `Lanes`, zeros after them; n is less than it has.
#ifdef __AVX512F__
template <class Lanes, class S>
FUSED_RNN_INLINE Lanes load_some(const S* from, int n) {
  const uint64_t mask = (uint64_t(1) << (n * sizeof(S))) - 1;  // of bytes
  if constexpr (sizeof(Lanes) == 64)
    return bit_cast<Lanes>(_mm512_maskz_loadu_epi8(mask, from));
  else
    return bit_cast<Lanes>(_mm256_maskz_loadu_epi8(__mmask32(mask), from));
}
template <class Lanes, class S>
FUSED_RNN_INLINE void store_some(S* to, Lanes lanes, int n) {
  const uint64_t mask = (uint64_t(1) << (n * sizeof(S))) - 1;
  if constexpr (sizeof(Lanes) == 64)
    _mm512_mask_storeu_epi8(to, mask, bit_cast<__m512i>(lanes));
  else
    _mm256_mask_storeu_epi8(to, __mmask32(mask), bit_cast<__m256i>(lanes));
}
#else
// In pieces whose sizes the compiler knows.
template <int kMax, class S>
FUSED_RNN_INLINE void copy_some(S* to, const S* from, int n) {
  for (int size = kMax / 2; size > 0; size /= 2)
    if (n & size) {
      for (int i = 0; i < size; ++i) to[i] = from[i];
      to += size, from += size;
    }
}
template <class Lanes, class S>
FUSED_RNN_INLINE Lanes load_some(const S* from, int n) {
  constexpr int kMax = sizeof(Lanes) / sizeof(S);
  S some[kMax] = {};
  copy_some<kMax>(some, from, n);
  Lanes lanes;
  std::memcpy(&lanes, some, sizeof(lanes));
  return lanes;
}
template <class Lanes, class S>
FUSED_RNN_INLINE void store_some(S* to, Lanes lanes, int n) {
  constexpr int kMax = sizeof(Lanes) / sizeof(S);
  S some[kMax];
  std::memcpy(some, &lanes, sizeof(lanes));
  copy_some<kMax>(to, some, n);
}
#endif

template <class A, class S>
FUSED_RNN_INLINE Vec<A> load(const S* from, int n = Vec<A>::kLanes) {
  using Lanes = typename Stored<A, S>::Lanes;
  if (n < Vec<A>::kLanes) return Stored<A, S>::to(load_some<Lanes>(from, n));
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return Stored<A, S>::to(lanes);
}

template <class A, class S>
FUSED_RNN_INLINE void store(S* to, Vec<A> a, int n = Vec<A>::kLanes) {
  const typename Stored<A, S>::Lanes lanes = Stored<A, S>::from(a);
  if (n < Vec<A>::kLanes) return store_some(to, lanes, n);
  std::memcpy(to, &lanes, sizeof(lanes));
}

// `a` after a trip through the storage type
template <class S, class A>
FUSED_RNN_INLINE Vec<A> rounded(Vec<A> a) {
  return Stored<A, S>::to(Stored<A, S>::from(a));
}

// ---- Comparison ----

// The larger and the smaller of two. Where x is NaN, so is the result.
template <class A>
FUSED_RNN_INLINE Vec<A> at_least(Vec<A> x, Vec<A> low) {
  return Vec<A>(low.v > x.v ? low.v : x.v);
}
template <class A>
FUSED_RNN_INLINE Vec<A> at_most(Vec<A> x, Vec<A> high) {
  return Vec<A>(high.v < x.v ? high.v : x.v);
}

// As in cells.h.
template <class A>
FUSED_RNN_INLINE Vec<A> rectified(Vec<A> value, Vec<A> by) {
  const typename Vec<A>::Lanes zero{};
  return Vec<A>(by.v <= zero ? zero : value.v);
}

// GCC makes two instructions of a comparison and a choice.
#if defined(__AVX512F__)
FUSED_RNN_INLINE Vec<float> at_least(Vec<float> x, Vec<float> low) { return Vec<float>(_mm512_max_ps(low.v, x.v)); }
FUSED_RNN_INLINE Vec<float> at_most(Vec<float> x, Vec<float> high) { return Vec<float>(_mm512_min_ps(high.v, x.v)); }
#elif defined(__AVX2__) && FUSED_RNN_VECTOR_BYTES == 32
FUSED_RNN_INLINE Vec<float> at_least(Vec<float> x, Vec<float> low) { return Vec<float>(_mm256_max_ps(low.v, x.v)); }
FUSED_RNN_INLINE Vec<float> at_most(Vec<float> x, Vec<float> high) { return Vec<float>(_mm256_min_ps(high.v, x.v)); }
#endif

// ---- exp and tanh ----

// Whether float32 takes ln 2 as one number: where a product is not rounded before it is added.
#if defined(__FMA__) || defined(__aarch64__)
template <class A>
constexpr bool kOnePart = std::is_same<A, float>::value;
#else
template <class A>
constexpr bool kOnePart = false;
#endif

// x = n ln 2 + r with |r| <= ln(2)/2; hands back 2^n and expm1(r). Relative error below 1 ulp; with ln 2 as one number
// |x| / 20 more, where a gate is all but 0 or 1.
template <class A>
FUSED_RNN_INLINE void split_exp(Vec<A> x, Vec<A>& power, Vec<A>& expm1_r) {
  using R = Real<A>;
  using Bits = typename R::UnsignedBits;
  const Vec<A> shifted = x * Vec<A>(A(1.44269504088896340736)) + Vec<A>(R::kShifter);
  const Vec<A> n = shifted - Vec<A>(R::kShifter);
  const Vec<A> r = kOnePart<A> ? x - n * Vec<A>(R::kLn2) : (x - n * Vec<A>(R::kLn2High)) - n * Vec<A>(R::kLn2Low);
  const Bits one = bit_cast<Bits>(Vec<A>(A(1)).v);
  power.v = bit_cast<typename Vec<A>::Lanes>((bit_cast<Bits>(shifted.v) << R::kFraction) + one);
  constexpr int kTerms = sizeof(R::kExpm1) / sizeof(A);
  Vec<A> sum(R::kExpm1[kTerms - 1]);
  FUSED_RNN_UNROLL
  for (int k = kTerms - 2; k >= 0; --k) sum = r * sum + Vec<A>(R::kExpm1[k]);
  expm1_r = r + r * r * sum;
}

// Relative error about 1 ulp for x in [kExpMin, kExpMax]; clamped outside.
template <class A>
FUSED_RNN_INLINE Vec<A> exp(Vec<A> x) {
  Vec<A> power, expm1_r;
  split_exp(at_most(at_least(x, Vec<A>(Real<A>::kExpMin)), Vec<A>(Real<A>::kExpMax)), power, expm1_r);
  return power + power * expm1_r;
}

// With E = expm1(2|x|): |tanh x| = E / (E + 2), exact at 0 and at infinity. Relative error below 2.5 ulp.
template <class A>
FUSED_RNN_INLINE Vec<A> tanh(Vec<A> x) {
  using Lanes = typename Vec<A>::Lanes;
  using Bits = typename Real<A>::Bits;
  const Bits sign = bit_cast<Bits>(x.v) & bit_cast<Bits>(Vec<A>(A(-0.0)).v);
  const Vec<A> size = at_most(Vec<A>(bit_cast<Lanes>(bit_cast<Bits>(x.v) ^ sign)), Vec<A>(Real<A>::kTanhMax));
  Vec<A> power, expm1_r;
  split_exp(size + size, power, expm1_r);
  const Vec<A> e = power * expm1_r + (power - Vec<A>(A(1)));
  const Vec<A> y = e / (e + Vec<A>(A(2)));
  return Vec<A>(bit_cast<Lanes>(bit_cast<Bits>(y.v) | sign));
}

}  // namespace
}  // namespace fused_rnn
