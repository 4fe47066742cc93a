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

  // Prefetching of the first of n tiles of rows, where the one after it goes on: 1/n of the vectors that the next tiles
  // multiply. All in the first tile would be more than the memory delivers in its time. A single tile prefetches its
  // own vectors, kBytesAhead before their use: the next ones would be gone from the first-level cache by then. n may be
  // 0, where there are no rows.
  FUSED_RNN_INLINE Prefetch prefetch(const F* own, const F* after, int64_t n) const {
    if (!next) return {};
    const int64_t bytes = panel.row * int64_t(sizeof(F)), step = n > 1 ? ceil_div(bytes, n) : bytes;
    const char* const at = reinterpret_cast<const char*>(n > 1 ? after : own);
    return {n > 1 ? at : at + kBytesAhead, step, int(ceil_div(step, kLineBytes))};
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
  const int64_t tiles = products[0].left.tiled ? ceil_div(M, kLeftRows)
                        : narrow               ? ceil_div(M, kTileRows<kNarrow>)
                                               : ceil_div(M, kTileRows<NV>);
  alignas(64) A sums[kTilesAtOnce * kTileRows<kNarrow> * kWidth];
  Left<F> left[kProducts];
  for (int p = 0; p < kProducts; ++p) {
    left[p] = products[p].left;
    left[p].onto = p > 0;
  }
  Sums<A> to{sums, kWidth};
  RowTiles tile(M, tiles);
  for (int64_t done = 0; done < tiles;) {
    const int64_t end = least(tiles, done + kTilesAtOnce);
    const RowTiles first = tile;
    for (int part = 0; part < parts; ++part) {
      Prefetch prefetch[kProducts];
      for (int p = 0; p < kProducts; ++p) {
        const Product<F>& product = products[p];
        const F* const own = product.part(part).data;
        if (part + 1 == parts)
          prefetch[p] = product.prefetch(own, product.next, tiles).after(done * product.K);
        else if (done == 0)
          prefetch[p] = product.prefetch(own, product.part(part + 1).data, end);
      }
      tile = first;
      to.to = sums + part * vectors * kLanes;
      for (int64_t i = done; i < end; ++i, tile.next()) {
        const int rows = tile.rows();
        for (int j = 0; part == 0 && j < rows; ++j) fetch(tile.begin() + j);
        for (int p = 0; p < kProducts; ++p) {
          const Product<F>& product = products[p];
          left[p].move(product.left, tile.begin(), rows, product.K);
          if (narrow)
            tile_rows<F, kNarrow>(product.K, left[p], product.part(part), to, prefetch[p], rows);
          else
            tile_rows<F, NV>(product.K, left[p], product.part(part), to, prefetch[p], rows);
          prefetch[p] = prefetch[p].after(product.K);
        }
        to.to += rows * kWidth;
      }
    }
    for (int64_t m = first.begin(); m < tile.begin(); ++m) emit(m, sums + (m - first.begin()) * kWidth);
    done = end;
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
