// Matrix products on one thread. The right-hand matrix is packed into panels of a few vectors' columns, word after word
// of K, so that the innermost loop reads it once, in order. Included by each instruction set's source file.
#pragma once

#include <cstdint>

#include "caches.h"
#include "factor.inl.h"

namespace fused_rnn {
namespace {

// The most rows of a register tile of NV columns: the accumulators fit, the factors of the shorter side and one of the
// longer.
constexpr int rows_in_registers(int NV) {
  int rows = 1;
  while ((rows + 1) * NV + (rows + 1 < NV ? rows + 1 : NV) + 1 <= FUSED_RNN_REGISTERS) ++rows;
  return rows;
}

// Width, in vectors, of the register tile for a panel of NV vectors. If the whole width leaves registers for fewer than
// 4 rows, the tile has half of it: a tile of 6 x 2 needs about as many loads as one of 3 x 4, and the panel is read
// half as often.
template <int NV>
constexpr int kTileVectors = rows_in_registers(NV) < 4 && NV % 2 == 0 ? NV / 2 : NV;

// Up to so many rows are one tile of the whole width, which then reads fewer numbers of the left-hand matrix.
constexpr int64_t kFewTileRows = 3;
template <int NV>
int tile_vectors(int64_t rows) {
  return rows <= kFewTileRows ? NV : kTileVectors<NV>;
}

// Rows of a register tile of NV vectors.
template <int NV>
constexpr int kTileRows = int(least(rows_in_registers(NV), 8));

constexpr int kMaxVectors = kTileVectors<4>;       // widest panel of `Panels`, unless the rows are few
constexpr int kLeftRows = kTileRows<kMaxVectors>;  // of a left-hand matrix in tiles

// The left-hand matrix: word k of row m begins at data[m * row + k * col]. Or it is in tiles of about equal numbers of
// rows, at most kLeftRows; a tile holds word 0 of all its rows, then word 1 of all its rows, and so on.
//
// Sums run over `block` words before they are added to the total: the rounding error of a long sum grows with the
// length of its parts and their number, not with their product. `chains` sums of every chains-th word grow at once:
// with few rows the processor would wait for each addition. Both decide the bits of a result, so neither may depend on
// how rows were divided among threads.
template <class F>
struct Left {
  const F* data;
  int64_t row, col = Factor<F>::kDepth, block = 256;
  int chains = 1;
  bool onto = false;  // the total grows on what is there already
  bool tiled = false;

  // Rows [m, m + rows), which must be one tile of K words if the matrix is tiled.
  FUSED_RNN_INLINE Left tile(int64_t m, int64_t rows, int64_t K) const {
    constexpr int64_t kDepth = Factor<F>::kDepth;
    Left some = *this;
    some.data += m * (tiled ? K * kDepth : row);
    if (tiled) some.row = kDepth, some.col = rows * kDepth;
    return some;
  }
};

constexpr int64_t kLineBytes = 64;                            // of a cache line
constexpr int64_t kBytesAhead = 64 * FUSED_RNN_VECTOR_BYTES;  // prefetch distance of a tile within its own panel

// A matrix up to this size is expected to stay in the second-level cache between two uses; the other half of the cache
// is for the rest of the data.
inline int64_t near_bytes() { return second_level_cache() / 2; }

// Cache lines of a word of NV vectors.
template <class A, int NV>
constexpr int kWordLines = int(ceil_div(NV * Vec<A>::kLanes * int64_t(sizeof(A)), kLineBytes));

// Prefetching of a tile: for each word of K, `lines` cache lines from `at` on, which then moves on by `step` bytes.
// Whole words go to the first-level cache, parts of words to the second.
struct Prefetch {
  const char* at = nullptr;
  int64_t step = 0;
  int lines = 0;
};

// As many chains as keep the adders busy with M rows.
FUSED_RNN_INLINE int chains_for(int64_t M) { return M == 1 ? 4 : M <= 3 ? 2 : 1; }

// A panel of the right-hand matrix: the vectors of word k begin at data[k * row].
template <class F>
struct Panel {
  const F* data;
  int64_t row;
};

// sum[m][n] += row(m) column(n), with the shorter side in registers.
template <int M, int N, class V, class Row, class Column, class AddProduct>
FUSED_RNN_INLINE void add_products(V (&sum)[M][N], const Row& row, const Column& column, const AddProduct& add) {
  if constexpr (M < N) {
    V a[M];
    FUSED_RNN_UNROLL
    for (int m = 0; m < M; ++m) a[m] = row(m);
    FUSED_RNN_UNROLL
    for (int n = 0; n < N; ++n) {
      const V b = column(n);
      FUSED_RNN_UNROLL
      for (int m = 0; m < M; ++m) sum[m][n] = add(sum[m][n], a[m], b);
    }
  } else {
    V b[N];
    FUSED_RNN_UNROLL
    for (int n = 0; n < N; ++n) b[n] = column(n);
    FUSED_RNN_UNROLL
    for (int m = 0; m < M; ++m) {
      const V a = row(m);
      FUSED_RNN_UNROLL
      for (int n = 0; n < N; ++n) sum[m][n] = add(sum[m][n], a, b[n]);
    }
  }
}

// Where the sums of a tile are stored: in rows of `to`, `row` apart. If there are `results`, `to` is scratch memory,
// and row m goes to results[m], or is added to it if `onto`.
template <class A>
struct Sums {
  A* to;
  int64_t row;
  A* const* results = nullptr;
  bool onto = false;
};

// sums(m, v) = sum over k < K of left(m, k) * panel[k, v] for m < MR and v < NV vectors
template <class F, int MR, int NV, int kChains, int kLines, class A = typename Factor<F>::A>
void tile(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums, Prefetch prefetch) {
  using V = Vec<A>;
  const F* from = left.data;
  const int64_t row = left.row, col = left.col, to_row = sums.row;
  A* const to = sums.to;
  A* const* const results = sums.results;
  constexpr int64_t kWord = V::kLanes * Factor<F>::kDepth;
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += left.block * kChains) {
    V sum[kChains][MR][NV];
    FUSED_RNN_UNROLL
    for (int c = 0; c < kChains; ++c) FUSED_RNN_UNROLL
    for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
    for (int v = 0; v < NV; ++v) sum[c][m][v] = V(A(0));
    const auto add = [&](int c) __attribute__((always_inline)) {
      add_products<MR, NV>(
          sum[c], [&](int m) __attribute__((always_inline)) { return Factor<F>::broadcast(from + m * row); },
          [&](int v) __attribute__((always_inline)) {
            V b;
            std::memcpy(&b.v, panel.data + v * kWord, sizeof(b.v));
            return b;
          },
          [](V sum, V a, V b) __attribute__((always_inline)) { return Factor<F>::add_product(sum, a, b); });
      constexpr int kLevel = kLines < kWordLines<A, NV> ? 2 : 3;  // as the builtin counts: 3 is the first-level cache
      FUSED_RNN_UNROLL
      for (int line = 0; line < kLines; ++line) __builtin_prefetch(prefetch.at + line * kLineBytes, 0, kLevel);
      prefetch.at += prefetch.step;
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
template <class F, int NV, int MR = kTileRows<NV>, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void tile_rows(int rows, int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums,
                                const Prefetch& prefetch = {}) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_rows<F, NV, MR - 1>(rows, K, left, panel, sums, prefetch);
  if constexpr (MR == 1)
    if (left.chains == 4) return tile_in_chains<F, MR, NV, kFit<4, 1, NV> ? 4 : 2>(K, left, panel, sums, prefetch);
  if constexpr (MR <= 3 && kFit<2, 3, NV>)
    if (left.chains == 2) return tile_in_chains<F, MR, NV, 2>(K, left, panel, sums, prefetch);
  tile_in_chains<F, MR, NV, 1>(K, left, panel, sums, prefetch);
}

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

// The first n of NV vectors of sums, to or onto memory.
template <int NV, class A, class T>
FUSED_RNN_INLINE void store_row(T* to, const A* sums, int n, bool onto) {
  constexpr int kLanes = Vec<A>::kLanes;
  FUSED_RNN_UNROLL
  for (int v = 0; v < NV; ++v) {
    const int left = n - v * kLanes;
    if (left <= 0) return;
    const Vec<A> sum = load<A>(sums + v * kLanes);
    store(to + v * kLanes, onto ? load<A>(to + v * kLanes, left) + sum : sum, left);
  }
}

}  // namespace
}  // namespace fused_rnn
