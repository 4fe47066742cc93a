// What products are made of. A factor is what one element of a matrix is kept as; a word has the factors of kDepth
// consecutive k, in the bits of one lane. Included by each instruction set's source file.
#pragma once

#include "vector.inl.h"

namespace fused_rnn {
namespace {

FUSED_RNN_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FUSED_RNN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The factors of a storage type: the type that is computed in, or where the processor multiplies it, itself. Those of
// float32 may be bfloat16, too, by choice of the user.
template <class S>
struct FactorOf {
  using type = accumulate_t<S>;
};
template <class S>
using factor_t = typename FactorOf<S>::type;

template <class F>
struct Factor {
  using A = F;
  using Left = F;  // an element of the rows that a matrix of F is multiplied by
  static constexpr int kDepth = 1;
  static constexpr int kWords = 1;  // that one instruction takes: a matrix has a multiple of them, zeros at the end
  static constexpr int kParts = 1;  // in which a word is multiplied, one after the other
  FUSED_RNN_INLINE static Vec<A> broadcast(const F* word) { return Vec<A>(*word); }
  // sum + a b, lane by lane
  FUSED_RNN_INLINE static Vec<A> add_product(Vec<A> sum, Vec<A> a, Vec<A> b) { return sum + a * b; }
};

// The numbers of words of two bfloat16.
FUSED_RNN_INLINE Vec<float> first_of_pair(Vec<float> word) {
  return Vec<float>(bit_cast<FloatLanes>(bit_cast<Words>(word.v) << 16));
}
FUSED_RNN_INLINE Vec<float> second_of_pair(Vec<float> word) {
  return Vec<float>(bit_cast<FloatLanes>(bit_cast<Words>(word.v) & 0xffff0000u));
}

// A weight of bfloat16 that rows of float32 are multiplied by, in float32.
struct Widened {
  BFloat16 number;
};
template <>
struct Factor<Widened> {
  using A = float;
  using Left = float;
  static constexpr int kDepth = 2;
  static constexpr int kWords = 1;
  static constexpr int kParts = 2;
  FUSED_RNN_INLINE static Vec<float> broadcast(const float* number) { return Vec<float>(*number); }
  FUSED_RNN_INLINE static Vec<float> part(Vec<float> word, int i) {
    return i == 0 ? first_of_pair(word) : second_of_pair(word);
  }
  FUSED_RNN_INLINE static Vec<float> add_product(Vec<float> sum, Vec<float> a, Vec<float> b) { return sum + a * b; }
};

// An element of the left-hand matrix.
template <class F>
using left_t = typename Factor<F>::Left;

#ifdef FUSED_RNN_AMX
constexpr bool kAmx = true;
#else
constexpr bool kAmx = false;
#endif

#if defined(__AVX512BF16__) || defined(FUSED_RNN_AMX) || defined(FUSED_RNN_PAIRS)
// Two products to a lane and instruction, summed in float32.
template <>
struct FactorOf<BFloat16> {
  using type = BFloat16;
};
template <>
struct Factor<BFloat16> {
  using A = float;
  using Left = BFloat16;
  static constexpr int kDepth = 2;
  static constexpr int kWords = kAmx ? 16 : 1;
  static constexpr int kParts = 1;
  FUSED_RNN_INLINE static Vec<float> broadcast(const BFloat16* word) {
    float bits;
    std::memcpy(&bits, word, sizeof(bits));
    return Vec<float>(bits);
  }
  FUSED_RNN_INLINE static Vec<float> add_product(Vec<float> sum, Vec<float> a, Vec<float> b) {
#ifdef __AVX512BF16__
    return Vec<float>(_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v));
#else
    return sum + second_of_pair(a) * second_of_pair(b) + first_of_pair(a) * first_of_pair(b);
#endif
  }
  // Words of an element of `first` and the one below it of `second`; null stands for zeros.
  template <class S>
  FUSED_RNN_INLINE static Vec<float> paired(const S* first, const S* second, int n) {
    const auto row = [n](const S* from) {
      if (!from) return Vec<float>(0.0f);
      const Vec<float> numbers = load<float>(from, n);
      return std::is_same<S, BFloat16>::value ? numbers : rounded<BFloat16>(numbers);
    };
    const Vec<float> low = row(first), high = row(second);
    return Vec<float>(bit_cast<FloatLanes>((bit_cast<Words>(low.v) >> 16) | bit_cast<Words>(high.v)));
  }
};
#endif

template <class F>
FUSED_RNN_INLINE int64_t words(int64_t k) {
  return ceil_div(k, Factor<F>::kDepth * Factor<F>::kWords) * Factor<F>::kWords;
}

// The words of n elements of S, zeros after them.
template <class F, class S, class A = typename Factor<F>::A>
FUSED_RNN_INLINE Vec<A> load_words(const S* from, int64_t n) {
  constexpr int64_t kElements = Vec<A>::kLanes * Factor<F>::kDepth;
  if constexpr (Factor<F>::kDepth == 1) {
    return load<A>(from, int(least(n, kElements)));
  } else if constexpr (!std::is_same<S, F>::value) {
    constexpr int64_t kLanes = Vec<A>::kLanes;
    const auto half = [&](int64_t k) { return narrowed(F(), load<A>(from + k, int(most(0, least(n - k, kLanes)))).v); };
    const HalfWords halves[] = {half(0), half(kLanes)};
    Vec<A> words;
    std::memcpy(&words.v, halves, sizeof(words.v));
    return words;
  } else {
    using Lanes = typename Vec<A>::Lanes;
    if (n < kElements) return Vec<A>(load_some<Lanes>(from, int(n)));
    Vec<A> words;
    std::memcpy(&words.v, from, sizeof(words.v));
    return words;
  }
}

// The first n words.
template <class F, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void store_words(F* to, Vec<A> words, int n) {
  if (n < Vec<A>::kLanes) return store_some(reinterpret_cast<A*>(to), words.v, n);
  std::memcpy(to, &words.v, sizeof(words.v));
}

// ---- Across the lanes ----

template <bool kHigh, class A, size_t... kLane>
FUSED_RNN_INLINE Vec<A> zip(Vec<A> a, Vec<A> b, std::index_sequence<kLane...>) {
  constexpr int kLanes = Vec<A>::kLanes, kFirst = kHigh ? kLanes / 2 : 0;
#if defined(__clang__) || __GNUC__ >= 12
  return Vec<A>(__builtin_shufflevector(a.v, b.v, (kFirst + int(kLane) / 2 + int(kLane) % 2 * kLanes)...));
#else
  using Bits = typename Real<A>::Bits;
  return Vec<A>(__builtin_shuffle(a.v, b.v, Bits{(kFirst + int(kLane) / 2 + int(kLane) % 2 * kLanes)...}));
#endif
}
// a0 b0 a1 b1 ... of the lower or the upper half of the lanes
template <class A>
FUSED_RNN_INLINE Vec<A> zip_low(Vec<A> a, Vec<A> b) {
  return zip<false>(a, b, std::make_index_sequence<Vec<A>::kLanes>());
}
template <class A>
FUSED_RNN_INLINE Vec<A> zip_high(Vec<A> a, Vec<A> b) {
  return zip<true>(a, b, std::make_index_sequence<Vec<A>::kLanes>());
}

// As many vectors as a vector has lanes, rows to columns.
template <class A>
FUSED_RNN_INLINE void transpose(Vec<A> (&rows)[Vec<A>::kLanes]) {
  constexpr int kLanes = Vec<A>::kLanes;
  for (int size = 1; size < kLanes; size *= 2) {
    Vec<A> zipped[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + kLanes / 2]);
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = zipped[i];
  }
}

// Lane i becomes the sum of the lanes of rows[i].
template <class A>
FUSED_RNN_INLINE Vec<A> sums_of_rows(Vec<A> (&rows)[Vec<A>::kLanes]) {
  for (int n = Vec<A>::kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) rows[i] = zip_low(rows[i], rows[i + n]) + zip_high(rows[i], rows[i + n]);
  return rows[0];
}

}  // namespace
}  // namespace fused_rnn
