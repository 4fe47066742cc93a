// Products with weights that are used where they are: of rows with rows. Included by each instruction set's source
// file.
#pragma once

#include "gemm.inl.h"

namespace fused_rnn {
namespace {

// Whether weights whose rows have `words` words together are packed, where `rows` rows in all, up to B a step, are
// multiplied by them. The longer the rows, the smaller is the share of summing the lanes up.
template <class F, class S>
bool packing_pays(int64_t rows, int64_t, int64_t words) {
  if (!kUsedInPlace<F, S>) return true;
  constexpr int64_t kConverted = std::is_same<S, F>::value ? 1 : 4;  // each use converts them
  return rows > least(64, 8 + words / 16) / kConverted;
}

// So many rows of either matrix are multiplied at once.
template <class A>
constexpr int kDotColumns = Vec<A>::kLanes < 4 ? Vec<A>::kLanes : 4;
template <class A>
constexpr int kDotRows = rows_in_registers(kDotColumns<A>);

// A left-hand matrix is multiplied as it is, unlike AMX.
template <class F>
int64_t dot_elements(int64_t, int64_t) {
  return 0;
}
template <class F>
FUSED_RNN_INLINE Left<F> dot_operand(const Left<F>& left, int64_t, int64_t, left_t<F>*) {
  return left;
}

// Lanes that add up to the products of rows m < MR of the left-hand matrices with rows [r0, r0 + kDotColumns) of the n
// of a gate, to parts[m][r]; past n they mean nothing.
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
          sum,
          [&](int m)
              __attribute__((always_inline)) { return load_words<F>(d.left.data + m * d.left.row + k, elements); },
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

// emit(m, sums) for each row m < M: its products with row r < n <= kLanes of each of NG gates, summed over kProducts
// pairs of matrices, in sums[g * kLanes + r]. Lanes past n mean nothing.
template <int NG, int kProducts, class F, class S, class Emit>
FUSED_RNN_INLINE void dot_rows(int64_t M, int n, const Dots<F, S> (&dots)[kProducts], const Emit& emit) {
  using A = typename Factor<F>::A;
  constexpr int kLanes = Vec<A>::kLanes, kRows = kDotRows<A>;
  alignas(64) A sums[kRows * NG * kLanes];
  const int64_t tiles = ceil_div(M, kRows);
  for (int64_t i = 0, m0 = 0; i < tiles; ++i) {
    const int rows = int(M * (i + 1) / tiles - m0);
    for (int g = 0; g < NG; ++g) {
      Dots<F, S> of_gate[kProducts];
      for (int k = 0; k < kProducts; ++k) {
        of_gate[k] = dots[k];
        of_gate[k].left.data += m0 * dots[k].left.row;
        of_gate[k].right += g * dots[k].gate;
      }
      Vec<A> parts[kRows][kLanes];
      for (int r0 = 0; r0 < n; r0 += kDotColumns<A>) dot_tile_rows<kRows>(rows, r0, n, of_gate, parts);
      for (int m = 0; m < rows; ++m) store(sums + (m * NG + g) * kLanes, sums_of_rows(parts[m]));
    }
    for (int m = 0; m < rows; ++m) emit(m0 + m, static_cast<const A*>(sums + m * NG * kLanes));
    m0 += rows;
  }
}

}  // namespace
}  // namespace fused_rnn
