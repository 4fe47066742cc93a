// Tiles of a product in vector registers. Included by gemm.inl.h and amx_tile.inl.h.
#pragma once

#include "operands.inl.h"

namespace fused_rnn {
namespace {
namespace in_registers {

// Width, in vectors, of the register tile for a panel of NV vectors. If the whole width leaves registers for fewer than
// 4 rows, the tile has half of it: a tile of 6 x 2 needs about as many loads as one of 3 x 4, and the panel is read
// half as often.
template <int NV>
constexpr int kTileVectors = rows_in_registers(NV) < 4 && NV % 2 == 0 ? NV / 2 : NV;

// Up to this number of rows, one tile has the panel's whole width, so that the left-hand matrix is read once.
constexpr int64_t kFewTileRows = 3;
template <int NV>
int tile_vectors(int64_t rows) {
  return rows <= kFewTileRows ? NV : kTileVectors<NV>;
}

// Rows of a register tile of NV vectors.
template <int NV>
constexpr int kTileRows = int(least(rows_in_registers(NV), 8));

// The state of a worker's registers during its products: none, unlike AMX.
struct TileRegisters {};

// sums(m, v) = sum over k < K of left(m, k) * panel[k, v] for m < MR and v < NV vectors
template <class F, int MR, int NV, int kChains, int kLines, class A = typename Factor<F>::A>
void tile(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums, const Prefetch& prefetch) {
  using V = Vec<A>;
  const char* at = prefetch.at;
  const left_t<F>* from = left.data;
  const int64_t row = left.row, col = left.col;
  constexpr int64_t kWord = V::kLanes * Factor<F>::kDepth;
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += left.block * kChains) {
    V sum[kChains][MR][NV];
    FUSED_RNN_UNROLL
    for (int c = 0; c < kChains; ++c) FUSED_RNN_UNROLL
    for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
    for (int v = 0; v < NV; ++v) sum[c][m][v] = V(A(0));
    const auto add = [&](int c) __attribute__((always_inline)) {
      FUSED_RNN_UNROLL
      for (int part = 0; part < Factor<F>::kParts; ++part)
        add_products<MR, NV>(
            sum[c], [&](int m) __attribute__((always_inline)) { return Factor<F>::broadcast(from + m * row + part); },
            [&](int v) __attribute__((always_inline)) {
              V b;
              std::memcpy(&b.v, panel.data + v * kWord, sizeof(b.v));
              if constexpr (Factor<F>::kParts > 1) b = Factor<F>::part(b, part);
              return b;
            },
            [](V sum, V a, V b) __attribute__((always_inline)) { return Factor<F>::add_product(sum, a, b); });
      constexpr int kLevel = kLines < kWordLines<A, NV> ? 2 : 3;  // as the builtin counts: 3 is the first-level cache
      FUSED_RNN_UNROLL
      for (int line = 0; line < kLines; ++line) __builtin_prefetch(at + line * kLineBytes, 0, kLevel);
      at += prefetch.step;
      from += col;
      panel.data += panel.row;
    };
    const int64_t end = least(K, k0 + left.block * kChains);
    int64_t k = k0;
    for (; k + kChains <= end; k += kChains) {
      FUSED_RNN_UNROLL
      for (int c = 0; c < kChains; ++c) add(c);
    }
    if constexpr (kChains > 1)
      for (; k < end; ++k) add(0);
    // Read here, not above: the compiler would keep an address for each row, whether or not it is used.
    A* const to = sums.to;
    const int64_t to_row = sums.row;
    A* const* const results = sums.results;
    const auto each = [&](const auto& f) __attribute__((always_inline)) {
      FUSED_RNN_UNROLL
      for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
      for (int v = 0; v < NV; ++v) f(sum[0][m][v], m, v * V::kLanes);
    };
    FUSED_RNN_UNROLL
    for (int c = 1; c < kChains; ++c) each([&](V& total, int m, int v) { total += sum[c][m][v / V::kLanes]; });
    if (k0 > 0 || left.onto) each([&](V& total, int m, int v) { total += load<A>(to + m * to_row + v); });
    if (!results || end < K) {
      each([&](V& total, int m, int v) { store(to + m * to_row + v, total); });
    } else {
      if (sums.onto) each([&](V& total, int m, int v) { total += load<A>(results[m] + v); });
      each([&](V& total, int m, int v) { store(results[m] + v, total); });
    }
  }
}

// Whether the sums of a tile with M rows, NV vectors and kChains chains stay in registers. The tile with the most rows
// decides for all tiles with the same number of chains.
template <int kChains, int M, int NV>
constexpr bool kFit = kChains * M * NV + (M < NV ? M : NV) + 1 <= FUSED_RNN_REGISTERS;

// `tile` with the lines of `prefetch` as a constant. A tile of up to 3 rows is alone, so it prefetches whole words, or
// with many registers nothing: there, only the hardware's prefetching was measured.
template <class F, int MR, int NV, int kChains, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void tile_in_chains(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums,
                                     const Prefetch& prefetch) {
  constexpr int kAll = kWordLines<A, NV>;
  if (prefetch.lines == 0 || (MR <= 3 && FUSED_RNN_REGISTERS > 16))
    return tile<F, MR, NV, kChains, 0>(K, left, panel, sums, prefetch);
  if constexpr (MR > 3 && kAll > 1)
    if (prefetch.lines == 1) return tile<F, MR, NV, kChains, 1>(K, left, panel, sums, prefetch);
  if constexpr (MR > 3 && kAll > 2)
    if (prefetch.lines == 2) return tile<F, MR, NV, kChains, 2>(K, left, panel, sums, prefetch);
  tile<F, MR, NV, kChains, kAll>(K, left, panel, sums, prefetch);
}

// `tile` for a number of rows from 1 to MR
template <class F, int NV, int MR, class A>
FUSED_RNN_INLINE void tile_up_to(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums,
                                 const Prefetch& prefetch, int rows) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_up_to<F, NV, MR - 1>(K, left, panel, sums, prefetch, rows);
  if constexpr (MR == 1)
    if (left.chains == 4) return tile_in_chains<F, MR, NV, kFit<4, 1, NV> ? 4 : 2>(K, left, panel, sums, prefetch);
  if constexpr (MR <= 3 && kFit<2, 3, NV>)
    if (left.chains == 2) return tile_in_chains<F, MR, NV, 2>(K, left, panel, sums, prefetch);
  tile_in_chains<F, MR, NV, 1>(K, left, panel, sums, prefetch);
}

// The same for the rows of a register tile. Never inline: in each of its callers, whose number is that of cells times
// dtypes, it would be most of the code. The arguments are those of `tile` and in its registers, so this only jumps.
template <class F, int NV, class A = typename Factor<F>::A>
[[gnu::noinline]] void tile_rows(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums,
                                 const Prefetch& prefetch, int rows) {
  tile_up_to<F, NV, kTileRows<NV>>(K, left, panel, sums, prefetch, rows);
}

}  // namespace in_registers
}  // namespace
}  // namespace fused_rnn
