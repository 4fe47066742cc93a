// What forward and backward share: slices of the batch, units in whole vectors, packed weights. Included by each
// instruction set's source file.
//
// Packed weights are in gate panels: panel p holds the columns of units [p L, p L + L), L lanes a vector, for all gates
// of a unit side by side, so that one tile of sums is all that the cell needs.
#pragma once

#include <cstdint>

#include "../recurrence.h"
#include "gemm.inl.h"
#include "parallel.h"

namespace fused_rnn {
namespace {

FUSED_RNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_RNN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FUSED_RNN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Gates whose matmul takes h itself: all of them, or with the reset before the matmul all but the candidate.
template <class Cell>
constexpr int kHiddenGates = Cell::kResetBefore ? Cell::kGates - 1 : Cell::kGates;

// H hidden units in vectors.
template <class A>
struct Units {
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  int64_t H;

  int64_t panels() const { return ceil_div(H, kLanes); }
  int64_t padded() const { return panels() * kLanes; }                       // H in whole vectors
  int count(int64_t p) const { return int(least(kLanes, H - p * kLanes)); }  // units of panel p
};

// Rows [gate0*H, (gate0+NG)*H) of `weight` [G*H, K], and of `bias` if there is one, in gate panels.
template <int NG, class A>
class GatePanels {
  static constexpr int64_t kLanes = Vec<A>::kLanes;

 public:
  GatePanels(int64_t K, int64_t H)
      : K_(K), units_{H}, weight_(units_.panels() * K * NG * kLanes), bias_(units_.panels() * NG * kLanes) {}

  template <class S>
  void pack(int64_t p, const S* weight, const S* bias, int gate0) {
    const int n = units_.count(p);
    A* to = weight_ + p * K_ * NG * kLanes;
    for (int64_t k0 = 0; k0 < K_; k0 += kLanes)  // square blocks: rows are read and columns written in cache
      for (int g = 0; g < NG; ++g)
        for (int lane = 0; lane < kLanes; ++lane) {
          const S* from = weight + ((gate0 + g) * units_.H + p * kLanes + lane) * K_;
          for (int64_t k = k0; k < least(k0 + kLanes, K_); ++k)
            to[(k * NG + g) * kLanes + lane] = lane < n ? A(from[k]) : A(0);
        }
    for (int g = 0; g < NG; ++g) {
      const int64_t row0 = (gate0 + g) * units_.H + p * kLanes;
      store(bias_ + (p * NG + g) * kLanes, bias ? load<A>(bias + row0, n) : Vec<A>(A(0)));
    }
  }

  // emit(m, sums): row m's NG vectors of `left` times panel p, without the bias
  template <class Emit>
  FUSED_RNN_INLINE void multiply(int64_t p, int64_t M, Left<A> left, const Emit& emit) const {
    rows_times_panel<NG>(M, K_, left, weight_ + p * K_ * NG * kLanes, emit);
  }

  FUSED_RNN_INLINE Vec<A> bias(int64_t p, int g) const { return load<A>(bias_ + (p * NG + g) * kLanes); }

 private:
  int64_t K_;
  Units<A> units_;
  Scratch<A> weight_, bias_;
};

// Copies n numbers, or zeros where there is no source, into [padded] numbers of which the rest becomes zero.
template <class A, class S>
FUSED_RNN_INLINE void copy_padded(const S* from, int64_t n, A* to, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) to[i] = from && i < n ? A(from[i]) : A(0);
}

// The number of slices of the batch, and where slice s begins.
struct Slices {
  int64_t B, count;
  FUSED_RNN_INLINE explicit Slices(int64_t B) : B(B), count(most(1, least(B, thread_count()))) {}
  FUSED_RNN_INLINE int64_t begin(int64_t s) const { return B * s / count; }
  FUSED_RNN_INLINE int64_t rows() const { return ceil_div(B, count); }  // of the largest slice
};

}  // namespace
}  // namespace fused_rnn
