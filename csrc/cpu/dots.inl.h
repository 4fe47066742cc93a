// Products with a right-hand matrix that is used where it is, transposed. Included by each instruction set's source
// file.
#pragma once

#include "gemm.inl.h"

namespace fused_rnn {
namespace {

// Rows of a left-hand matrix, `row` apart, and rows of a right-hand one, both of K elements.
template <class F, class S>
struct Dots {
  const F* left;
  int64_t row;
  const S* right;
  int64_t K;
};

// So many rows of either are multiplied at once.
template <class A>
constexpr int kDotColumns = Vec<A>::kLanes < 4 ? Vec<A>::kLanes : 4;
template <class A>
constexpr int kDotRows = rows_in_registers(kDotColumns<A>);

// Lanes that add up to the products of rows m < MR of `left` with rows [r0, r0 + kDotColumns) of the n of `right`, to
// parts[m][r]; past n they mean nothing.
template <int MR, int kProducts, class F, class S, class A>
void dot_tile(int r0, int n, const Dots<F, S> (&dots)[kProducts], Vec<A> (*parts)[Vec<A>::kLanes]) {
  using V = Vec<A>;
  constexpr int kColumns = kDotColumns<A>;
  constexpr int64_t kElements = V::kLanes * Factor<F>::kDepth;
  V sum[MR][kColumns];
  FUSED_RNN_UNROLL
  for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
  for (int r = 0; r < kColumns; ++r) sum[m][r] = V(A(0));
  for (const Dots<F, S>& d : dots) {
    const S* right[kColumns];
    for (int r = 0; r < kColumns; ++r) right[r] = d.right + least(r0 + r, n - 1) * d.K;
    const auto add = [&](int64_t k, int64_t elements) __attribute__((always_inline)) {
      add_products<MR, kColumns>(
          sum, [&](int m) __attribute__((always_inline)) { return load_words<F>(d.left + m * d.row + k, elements); },
          [&](int r) __attribute__((always_inline)) { return load_words<F>(right[r] + k, elements); },
          [](V sum, V a, V b) __attribute__((always_inline)) { return Factor<F>::add_product(sum, a, b); });
    };
    int64_t k = 0;
    for (; k + kElements <= d.K; k += kElements) add(k, kElements);
    if (k < d.K) add(k, d.K - k);
  }
  FUSED_RNN_UNROLL
  for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
  for (int r = 0; r < kColumns; ++r) parts[m][r0 + r] = sum[m][r];
}

// `dot_tile` for a number of rows from 1 to MR
template <int MR, int kProducts, class F, class S, class A>
FUSED_RNN_INLINE void dot_tile_rows(int rows, int r0, int n, const Dots<F, S> (&dots)[kProducts],
                                    Vec<A> (*parts)[Vec<A>::kLanes]) {
  if constexpr (MR > 1)
    if (rows < MR) return dot_tile_rows<MR - 1>(rows, r0, n, dots, parts);
  dot_tile<MR>(r0, n, dots, parts);
}

// to[m * stride + r] = the product of row m < rows <= kDotRows of `left` with row r < n <= kLanes of `right`, summed
// over kProducts such pairs of matrices; lanes past n mean nothing.
template <int kProducts, class F, class S, class A>
FUSED_RNN_INLINE void dot_rows(int rows, int n, const Dots<F, S> (&dots)[kProducts], A* to, int64_t stride) {
  constexpr int kLanes = Vec<A>::kLanes;
  Vec<A> parts[kDotRows<A>][kLanes];
  for (int r0 = 0; r0 < n; r0 += kDotColumns<A>) dot_tile_rows<kDotRows<A>>(rows, r0, n, dots, parts);
  for (int m = 0; m < rows; ++m) store(to + m * stride, sums_of_rows(parts[m]));
}

}  // namespace
}  // namespace fused_rnn
