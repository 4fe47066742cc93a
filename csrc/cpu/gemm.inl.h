// Matrix products on one thread. The right-hand matrix is packed into panels of a few vectors' columns, word after word
// of K, so that the innermost loop reads it once, in order. Included by each instruction set's source file.
#pragma once

#ifdef FUSED_RNN_AMX
#include "amx_tile.inl.h"
#else
#include "register_tile.inl.h"
#endif

namespace fused_rnn {
namespace {

#ifndef FUSED_RNN_AMX
using namespace in_registers;
#endif

constexpr int kMaxVectors = kTileVectors<4>;       // widest panel of `Panels`, unless the rows are few
constexpr int kLeftRows = kTileRows<kMaxVectors>;  // of a left-hand matrix in tiles

// One product of a sum of products: K words of the rows of `left` times a panel. Of a panel that is wider than a tile,
// the vectors of each tile lie together, for all words.
template <class F>
struct Product {
  int64_t K;
  Left<F> left;
  Panel<F> panel;
  const F* next = nullptr;  // the panel after it, if that is not in the second-level cache

  FUSED_RNN_INLINE Panel<F> part(int i) const { return {panel.data + i * K * panel.row, panel.row}; }  // of one tile

  // Prefetching of tile i of n tiles of rows: 1/n of the vectors that the next tiles multiply. All in the first tile
  // would be more than the memory delivers in its time. A single tile prefetches its own vectors, kBytesAhead before
  // their use: the next ones would be gone from the first-level cache by then.
  FUSED_RNN_INLINE Prefetch prefetch(const F* own, const F* after, int64_t i, int64_t n) const {
    if (!next) return {};
    const int64_t step = ceil_div(panel.row * int64_t(sizeof(F)), n);
    const char* const from =
        n == 1 ? reinterpret_cast<const char*>(own) + kBytesAhead : reinterpret_cast<const char*>(after) + K * step * i;
    return {from, step, int(ceil_div(step, kLineBytes))};
  }
};

// The sum of the products, for M rows, in tiles of about equal numbers of rows; emit(m, sums) gets every row's NV
// vectors of sums, after fetch(m) could prefetch the memory that emit will write. The panels' words have the width of a
// tile: NV vectors, or kTileVectors.
template <int NV, int kProducts, class F, class Fetch, class Emit, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void rows_times_panels(int64_t M, const Product<F> (&products)[kProducts], const Fetch& fetch,
                                        const Emit& emit) {
  constexpr int kLanes = Vec<A>::kLanes, kWidth = NV * kLanes, kNarrow = kTileVectors<NV>;
  constexpr int kTilesAtOnce = kNarrow < NV ? 8 : 1;
  const bool narrow = kNarrow < NV && products[0].panel.row < kWidth * Factor<F>::kDepth;
  const int vectors = narrow ? kNarrow : NV, parts = NV / vectors;
  const int64_t rows_of_tile = products[0].left.tiled ? kLeftRows : narrow ? kTileRows<kNarrow> : kTileRows<NV>;
  const int64_t tiles = ceil_div(M, rows_of_tile);
  alignas(64) A sums[kTilesAtOnce * kTileRows<kNarrow> * kWidth];
  for (int64_t first = 0; first < tiles; first += kTilesAtOnce) {
    const int64_t end = least(tiles, first + kTilesAtOnce), m0 = M * first / tiles, m1 = M * end / tiles;
    for (int part = 0; part < parts; ++part)
      for (int64_t i = first, m = m0; i < end; ++i) {
        const int rows = int(M * (i + 1) / tiles - m);
        for (int64_t j = m; part == 0 && j < m + rows; ++j) fetch(j);
        bool onto = false;
        for (const Product<F>& product : products) {
          Left<F> left = product.left.tile(m, rows, product.K);
          left.onto = onto;
          const Panel<F> panel = product.part(part);
          Prefetch prefetch;
          if (part + 1 == parts)
            prefetch = product.prefetch(panel.data, product.next, i, tiles);
          else if (first == 0)
            prefetch = product.prefetch(panel.data, product.part(part + 1).data, i, end);
          const Sums<A> to{sums + (m - m0) * kWidth + part * vectors * kLanes, kWidth};
          if (narrow)
            tile_rows<F, kNarrow>(rows, product.K, left, panel, to, prefetch);
          else
            tile_rows<F, NV>(rows, product.K, left, panel, to, prefetch);
          onto = true;
        }
        m += rows;
      }
    for (int64_t m = m0; m < m1; ++m) emit(m, sums + (m - m0) * kWidth);
  }
}

template <class T>
FUSED_RNN_INLINE void fetch_for_writing(const T* to, int64_t n) {
  const char *const first = reinterpret_cast<const char*>(to), *const last = first + n * int64_t(sizeof(T)) - 1;
  for (const char* at = first; at < last; at += kLineBytes) __builtin_prefetch(at, 1);
  __builtin_prefetch(last, 1);
}

}  // namespace
}  // namespace fused_rnn
