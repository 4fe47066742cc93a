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

// Rows [gate0*H, (gate0+NG)*H) of `weight` [G*H, K], and of `bias` if there is one, in gate panels. Where few rows are
// to be multiplied, packing would cost more than it saves: then the weight is used where it is.
template <int NG, class S, class A>
class GatePanels {
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  static constexpr int kDotRows = FUSED_RNN_REGISTERS == 32 ? 4 : 2;

 public:
  GatePanels(const S* weight, const S* bias, int gate0, int64_t K, int64_t H, bool packed)
      : source_(weight + gate0 * H * K),
        bias_source_(bias ? bias + gate0 * H : nullptr),
        K_(K),
        units_{H},
        packed_(packed),
        weight_(packed ? units_.panels() * K * NG * kLanes : 0),
        bias_(units_.panels() * NG * kLanes) {}

  void pack(int64_t p) {
    const int n = units_.count(p);
    for (int g = 0; g < NG; ++g)
      store(bias_ + (p * NG + g) * kLanes,
            bias_source_ ? load<A>(bias_source_ + g * units_.H + p * kLanes, n) : Vec<A>(A(0)));
    if (!packed_) return;
    A* to = weight_ + p * K_ * NG * kLanes;
    for (int64_t k0 = 0; k0 < K_; k0 += kLanes)  // square blocks: rows are read and columns written in cache
      for (int g = 0; g < NG; ++g)
        for (int lane = 0; lane < kLanes; ++lane) {
          const S* from = source_ + (g * units_.H + p * kLanes + lane) * K_;
          for (int64_t k = k0; k < least(k0 + kLanes, K_); ++k)
            to[(k * NG + g) * kLanes + lane] = lane < n ? A(from[k]) : A(0);
        }
  }

  // emit(m, sums): row m's NG vectors of `left` times panel p, without the bias
  template <class Emit>
  FUSED_RNN_INLINE void multiply(int64_t p, int64_t M, Left<A> left, const Emit& emit) const {
    if (packed_) return rows_times_panel<NG>(M, K_, left, weight_ + p * K_ * NG * kLanes, emit);
    constexpr int64_t kWidth = NG * kLanes;
    alignas(64) A sums[kDotRows * kWidth] = {};
    for (int64_t m0 = 0; m0 < M; m0 += kDotRows) {
      const int rows = int(least(kDotRows, M - m0));
      const A* from = left.data + m0 * left.row;
      for (int g = 0; g < NG; ++g) {
        const S* right = source_ + (g * units_.H + p * kLanes) * K_;
        if (rows == kDotRows)
          dot_rows<A, kDotRows>(units_.count(p), K_, from, left.row, right, sums + g * kLanes, kWidth);
        else
          for (int m = 0; m < rows; ++m)
            dot_rows<A, 1>(units_.count(p), K_, from + m * left.row, left.row, right, sums + m * kWidth + g * kLanes,
                           0);
      }
      for (int m = 0; m < rows; ++m) emit(m0 + m, sums + m * kWidth);
    }
  }

  FUSED_RNN_INLINE Vec<A> bias(int64_t p, int g) const { return load<A>(bias_ + (p * NG + g) * kLanes); }

 private:
  const S *source_, *bias_source_;  // row gate0*H of the weight and the bias
  int64_t K_;
  Units<A> units_;
  bool packed_;
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
