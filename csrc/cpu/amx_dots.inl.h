// Products with weights that are used where they are, in the registers of AMX, with the interface of dots.inl.h.
// Included by layout.inl.h where FUSED_RNN_AMX is defined.
//
// The left factor of the instruction is 16 rows of the weight, units of a gate, loaded from where they are. The right
// factor is the left-hand matrix, transposed in pairs of k. So the sums come transposed: [unit][row].
#pragma once

#include "gemm.inl.h"

namespace fused_rnn {
namespace {

constexpr int64_t kRowBlock = amx::kRows;  // rows of the left-hand matrix that are multiplied at once

// As in dots.inl.h. Packing takes as long as some 15 steps in place; for more rows at once, packed tiles are faster.
template <class F, class S>
bool packing_pays(int64_t rows, int64_t B, int64_t) {
  constexpr int64_t kSteps = 15;
  return !kUsedInPlace<F, S> || B > kRowBlock || rows > kSteps * B;
}

// A left-hand matrix of M rows as dot_rows takes it: in blocks of 16 rows, the last one with zeros, [words][16].
template <class F>
int64_t dot_elements(int64_t M, int64_t K) {
  return ceil_div(M, kRowBlock) * kRowBlock * words<F>(K) * Factor<F>::kDepth;
}
template <class F>
Left<F> dot_operand(const Left<F>& left, int64_t M, int64_t K, F* to) {
  using V = Vec<typename Factor<F>::A>;
  static_assert(V::kLanes == kRowBlock && Factor<F>::kWords == kRowBlock, "a block is transposed in squares");
  const Left<F> operand{to, words<F>(K) * Factor<F>::kDepth};
  for (int64_t m0 = 0; m0 < M; m0 += kRowBlock)
    for (int64_t k = 0; k < K; k += kTileElements<F>, to += kRowBlock * kTileElements<F>) {
      V square[kRowBlock];
      for (int64_t m = 0; m < kRowBlock; ++m)
        square[m] = m0 + m < M ? load_words<F>(left.data + (m0 + m) * left.row + k, K - k) : V(0);
      transpose(square);
      std::memcpy(to, square, sizeof(square));
    }
  return operand;
}

// to[g][r][m] = the sum of the products for row m of a block of left-hand rows and row r < n of gate g.
template <int NG, int kProducts, class F, class A>
void dot_block(int n, const Dots<F, F> (&dots)[kProducts], A* to) {
  const auto each_gate = [](const auto& f)
                             __attribute__((always_inline)) { each_constant(f, std::make_index_sequence<NG>()); };
  amx::shape_for(n);
  each_gate([](auto g) __attribute__((always_inline)) { amx::zero<g>(); });
  for (const Dots<F, F>& d : dots) {
    const F* left = d.left.data;
    const auto multiply = [&](const F* right, int64_t gate, int64_t row) __attribute__((always_inline)) {
      amx::load<5>(left, amx::kRowBytes);
      each_gate([&](auto g) __attribute__((always_inline)) {
        constexpr int kRight = g % 2 ? 6 : 4;
        amx::load<kRight>(right + g * gate, row * int64_t(sizeof(F))), amx::add_product<g, kRight, 5>(F());
      });
      left += kRowBlock * kTileElements<F>;
    };
    const int64_t whole = d.K / kTileElements<F> * kTileElements<F>;
    for (int64_t k = 0; k < whole; k += kTileElements<F>) multiply(d.right + k, d.gate, d.K);
    if (whole < d.K) {  // past a row's end there may be a NaN, or nothing
      alignas(64) F ends[NG][kRowBlock * kTileElements<F>] = {};
      for (int g = 0; g < NG; ++g)
        for (int r = 0; r < n; ++r)
          std::memcpy(ends[g] + r * kTileElements<F>, d.right + g * d.gate + r * d.K + whole,
                      (d.K - whole) * sizeof(F));
      multiply(ends[0], kRowBlock * kTileElements<F>, kTileElements<F>);
    }
  }
  each_gate([&](auto g)
                __attribute__((always_inline)) { amx::store<g>(to + g * kRowBlock * kRowBlock, amx::kRowBytes); });
}

// As in dots.inl.h, for left-hand matrices from dot_operand.
template <int NG, int kProducts, class F, class Emit>
FUSED_RNN_INLINE void dot_rows(int64_t M, int n, const Dots<F, F> (&dots)[kProducts], const Emit& emit) {
  using A = typename Factor<F>::A;
  constexpr int64_t kSquare = kRowBlock * kRowBlock;
  alignas(64) A squares[NG * kSquare] = {}, sums[NG * kSquare];
  for (int64_t m0 = 0; m0 < M; m0 += kRowBlock) {
    Dots<F, F> of_block[kProducts];
    for (int k = 0; k < kProducts; ++k) {
      of_block[k] = dots[k];
      of_block[k].left.data += m0 * dots[k].left.row;
    }
    dot_block<NG>(n, of_block, squares);
    for (int g = 0; g < NG; ++g) {
      Vec<A> square[kRowBlock];
      std::memcpy(square, squares + g * kSquare, sizeof(square));
      transpose(square);
      for (int64_t m = 0; m < kRowBlock; ++m) store(sums + (m * NG + g) * kRowBlock, square[m]);
    }
    for (int64_t m = m0; m < least(M, m0 + kRowBlock); ++m)
      emit(m, static_cast<const A*>(sums + (m - m0) * NG * kRowBlock));
  }
}

}  // namespace
}  // namespace fused_rnn
