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

// Vectors of the register tile for a panel of NV. Where few rows would fit beside the whole width, it is half of that:
// each of 6 rows times 2 vectors needs about as many loads as 3 times 4, but the panel is read half as often.
template <int NV>
constexpr int kTileVectors = rows_in_registers(NV) < 4 && NV % 2 == 0 ? NV / 2 : NV;

// Rows of the register tile for a panel of NV vectors.
template <int NV>
constexpr int kTileRows = int(least(rows_in_registers(kTileVectors<NV>), 8));

constexpr int kMaxVectors = kTileVectors<4>;       // widest panel of `Panels`
constexpr int kLeftRows = kTileRows<kMaxVectors>;  // of a left-hand matrix in tiles

// The left-hand matrix: word k of row m begins at data[m * row + k * col]. Or it is in tiles of about equal numbers of
// rows, at most kLeftRows: one after the other, and in each word k of all its rows before word k + 1.
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

  // `rows` rows from m on, which if it is tiled are a tile of K words.
  FUSED_RNN_INLINE Left tile(int64_t m, int64_t rows, int64_t K) const {
    constexpr int64_t kDepth = Factor<F>::kDepth;
    Left some = *this;
    some.data += m * (tiled ? K * kDepth : row);
    if (tiled) some.row = kDepth, some.col = rows * kDepth;
    return some;
  }
};

constexpr int64_t kLineBytes = 64;                            // of a cache line
constexpr int64_t kBytesAhead = 64 * FUSED_RNN_VECTOR_BYTES;  // a tile asks for its own panel so much before it is used

// So many bytes of a matrix stay in the second-level cache from one use to the next, beside what else goes through it.
inline int64_t near_bytes() { return second_level_cache() / 2; }

// Cache lines of a word of NV vectors.
template <class A, int NV>
constexpr int kWordLines = int((NV * Vec<A>::kLanes * sizeof(A) + kLineBytes - 1) / kLineBytes);

// What a tile prefetches: for each word `lines` lines, `step` bytes further each time; into the first-level cache if
// they are whole words, else into the second.
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

// Where a tile's sums go: to rows that are `row` apart, or with those as scratch memory to or onto results[m].
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
      constexpr int kLevel = kLines < kWordLines<A, NV> ? 2 : 3;  // 3: the first, 2: the second
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

// `tile` with the lines of `prefetch` as a constant. Up to 3 rows are one tile, which prefetches whole words; with many
// registers it leaves that to the hardware: nothing else was measured there.
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

  // What tile i of n with the same vectors of a panel prefetches: an equal share of the vectors that come after. If the
  // first tile asked for all of them, it would have to wait. A single tile asks for its own, kBytesAhead before it uses
  // them: those that come after would not stay in the first-level cache until then.
  FUSED_RNN_INLINE Prefetch prefetch(const F* own, const F* after, int64_t i, int64_t n) const {
    if (!next) return {};
    const int64_t step = ceil_div(panel.row * int64_t(sizeof(F)), n);
    const char* const from =
        n == 1 ? reinterpret_cast<const char*>(own) + kBytesAhead : reinterpret_cast<const char*>(after) + K * step * i;
    return {from, step, int(ceil_div(step, kLineBytes))};
  }
};

// The sum of the products, for M rows, in tiles of about equal numbers of rows; emit(m, sums) gets every row's NV
// vectors of sums, after fetch(m) could prefetch the memory that emit will write.
template <int NV, int kProducts, class F, class Fetch, class Emit, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void rows_times_panels(int64_t M, const Product<F> (&products)[kProducts], const Fetch& fetch,
                                        const Emit& emit) {
  constexpr int kWidth = NV * Vec<A>::kLanes, kVectors = kTileVectors<NV>, kParts = NV / kVectors;
  const int64_t tiles = ceil_div(M, products[0].left.tiled ? kLeftRows : kTileRows<NV>);
  constexpr int kTilesAtOnce = kParts > 1 ? 8 : 1;
  alignas(64) A sums[kTilesAtOnce * kTileRows<NV> * kWidth];
  for (int64_t first = 0; first < tiles; first += kTilesAtOnce) {
    const int64_t end = least(tiles, first + kTilesAtOnce), m0 = M * first / tiles, m1 = M * end / tiles;
    for (int part = 0; part < kParts; ++part)
      for (int64_t i = first, m = m0; i < end; ++i) {
        const int rows = int(M * (i + 1) / tiles - m);
        for (int64_t j = m; part == 0 && j < m + rows; ++j) fetch(j);
        bool onto = false;
        for (const Product<F>& product : products) {
          Left<F> left = product.left.tile(m, rows, product.K);
          left.onto = onto;
          const Panel<F> panel = product.part(part);
          Prefetch prefetch;
          if (part + 1 == kParts)
            prefetch = product.prefetch(panel.data, product.next, i, tiles);
          else if (first == 0)
            prefetch = product.prefetch(panel.data, product.part(part + 1).data, i, end);
          A* const to = sums + (m - m0) * kWidth + part * kVectors * Vec<A>::kLanes;
          tile_rows<F, kVectors>(rows, product.K, left, panel, Sums<A>{to, kWidth}, prefetch);
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

// ---- The right-hand matrix where it is, transposed ----

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

// Rows of one block of a matrix that few rows are multiplied by, once: a packed block stays in the second-level cache.
constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kNearColumns = 128;  // rows so short are used in place: the block stays in the first-level cache

// A [K, N] matrix in panels of at most kMaxVectors vectors, all of about the same width. Packed, columns past N are
// zero, and so is what fills the last word of K. Or the panels are used where they are, if vectors fill the rows.
template <class F>
struct Panels {
  using A = typename Factor<F>::A;
  static constexpr int64_t kLanes = Vec<A>::kLanes, kDepth = Factor<F>::kDepth;
  int64_t K, N;
  const F* unpacked = nullptr;

  int64_t vectors() const { return ceil_div(N, kLanes); }
  int64_t count() const { return ceil_div(vectors(), kMaxVectors); }
  int64_t elements() const { return vectors() * kLanes * words<F>(K) * kDepth; }
  int64_t packed_elements() const { return unpacked ? 0 : elements(); }
  int64_t first_vector(int64_t p) const { return vectors() * p / count(); }  // of panel p; p may be count()

  // Pack panels [p0, p1), some rows after the other; row_of(k) points to the N elements of row k.
  template <class RowOf>
  void pack(int64_t p0, int64_t p1, F* packed, const RowOf& row_of) const {
    constexpr int64_t kRows = 8;
    for (int64_t k = 0; k < K && !unpacked; k += kRows)
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t first = first_vector(p), end = first_vector(p + 1);
        F* const to = packed + (first * words<F>(K) * kDepth + (end - first) * k) * kLanes;
        pack(first, end, k, least(K, k + kRows), to, row_of);
      }
  }

  // Vectors [first, end) of rows [k0, k1), one row after the other.
  template <class RowOf>
  void pack(int64_t first, int64_t end, int64_t k0, int64_t k1, F* to, const RowOf& row_of) const {
    const int64_t whole = least(end, N / kLanes);
    for (int64_t k = k0; k < k1; k += kDepth) {
      const auto *row = row_of(k), *next = kDepth > 1 && k + 1 < K ? row_of(k + 1) : nullptr;
      const auto pack_vector = [&](int64_t v, int n) __attribute__((always_inline)) {
        Vec<A> word;
        if constexpr (kDepth == 1)
          word = load<A>(row + v * kLanes, n);
        else
          word = Factor<F>::paired(row + v * kLanes, next ? next + v * kLanes : nullptr, n);
        std::memcpy(to, &word.v, sizeof(word.v));
        to += kLanes * kDepth;
      };
      for (int64_t v = first; v < whole; ++v) pack_vector(v, kLanes);
      for (int64_t v = most(first, whole); v < end; ++v) pack_vector(v, int(N - v * kLanes));
    }
  }

  // Multiplies M rows of `left` by the matrix. Row m of the product goes to to[m, :], or is added to it if `onto`.
  // Tiles go along the rows of `to`, which is faster where K is small and most of the time goes into writing.
  template <class T>
  void multiply_along(const F* packed, int64_t M, Left<F> left, T* to, bool onto) const {
    const bool direct = std::is_same<T, A>::value && N % kLanes == 0;
    if constexpr (std::is_same<T, A>::value)
      if (direct && words<F>(K) == 1) return multiply_one_word(packed, M, left, to, onto);
    left.onto = direct && onto;
    const int64_t tiles = ceil_div(M, kLeftRows);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t m = M * i / tiles;
      const int rows = int(M * (i + 1) / tiles - m);
      const Left<F> some = left.tile(m, rows, words<F>(K));
      for (int64_t p = 0; p < count(); ++p) {
        if constexpr (std::is_same<T, A>::value)
          if (direct) {
            with_width(p, [&](auto width) {
              const int64_t first = first_vector(p) * kLanes;
              const Panel<F> panel{packed + first * words<F>(K) * kDepth, width * kLanes * kDepth};
              tile_rows<F, width>(rows, words<F>(K), some, panel, Sums<A>{to + m * N + first, N});
            });
            continue;
          }
        multiply(p, -1, packed, rows, some, [&](int64_t r) { return to + (m + r) * N; }, N, onto);
      }
    }
  }

  // Scratch memory of multiply_once for M rows: a block of packed rows of this matrix, and sums.
  int64_t block_elements() const { return vectors() * kLanes * kRowsAtOnce; }
  int64_t sums_elements(int64_t M) const { return vectors() * kLanes * M; }

  // `multiply` for panels [p0, p1), in one pass over the rows of a matrix that is not packed: source_of(k) points to
  // the N elements of row k.
  template <class SourceOf, class RowOf>
  void multiply_once(int64_t p0, int64_t p1, const SourceOf& source_of, F* block, A* sums, int64_t M, Left<F> left,
                     const RowOf& row_of, int64_t columns, bool onto) const {
    using Source = std::remove_const_t<std::remove_pointer_t<decltype(source_of(0))>>;
    const F* const start = left.data;
    const bool in_place = kDepth == 1 && std::is_same<Source, F>::value && N % kLanes == 0 &&
                          (M <= kTileRows<kMaxVectors> || N <= kNearColumns);
    const auto packed = [&](int64_t p) { return block + first_vector(p) * kLanes * kRowsAtOnce; };
    for (int64_t k0 = 0; k0 < K; k0 += kRowsAtOnce) {
      const int64_t k1 = least(K, k0 + kRowsAtOnce);
      for (int64_t k = k0; k < k1 && !in_place; k += kDepth)
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t first = first_vector(p), end = first_vector(p + 1);
          pack(first, end, k, k + 1, packed(p) + (k - k0) * (end - first) * kLanes, source_of);
        }
      left.onto = k0 > 0;
      for (int64_t p = p0; p < p1; ++p)
        with_width(p, [&](auto width) {
          constexpr int NV = width;
          left.data = start + k0 / kDepth * left.col;
          Panel<F> panel{packed(p), NV * kLanes * kDepth};
          if constexpr (std::is_same<Source, F>::value)
            if (in_place) panel = {source_of(k0) + first_vector(p) * kLanes, N};
          const int64_t tiles = ceil_div(M, kTileRows<NV>);
          for (int64_t i = 0, m = 0; i < tiles; ++i) {
            const int rows = int(M * (i + 1) / tiles - m);
            tile_rows<F, NV>(rows, words<F>(k1 - k0), left, panel,
                             Sums<A>{sums + (first_vector(p) * M + m * NV) * kLanes, NV * kLanes});
            left.data += rows * left.row;
            m += rows;
          }
        });
    }
    for (int64_t p = p0; p < p1; ++p)
      with_width(p, [&](auto width) {
        constexpr int NV = width;
        const int64_t first = first_vector(p) * kLanes;
        for (int64_t m = 0; m < M; ++m)
          store_row<NV>(row_of(m) + first, sums + first * M + m * NV * kLanes, int(least(NV * kLanes, columns - first)),
                        onto);
      });
  }

  // Multiplies M rows of `left` by panel p. The columns of that panel in row m of the product go to row_of(m), or are
  // added to the numbers there if `onto`; `columns` is the length of a row.
  template <class RowOf>
  void multiply(int64_t p, int64_t next, const F* packed, int64_t M, const Left<F>& left, const RowOf& row_of,
                int64_t columns, bool onto) const {
    with_width(p, [&](auto width) { multiply_width<width>(p, next, packed, M, left, row_of, columns, onto); });
  }

 private:
  // The same for a single word of K: then the packed panels are one row.
  void multiply_one_word(const F* packed, int64_t M, const Left<F>& left, A* to, bool onto) const {
    for (int64_t m = 0; m < M; ++m, to += N) {
      const Vec<A> a = Factor<F>::broadcast(left.tile(m, 1, 1).data);
      for (int64_t j = 0; j < N; j += kLanes) {
        Vec<A> b;
        std::memcpy(&b.v, packed + j * kDepth, sizeof(b.v));
        store(to + j, Factor<F>::add_product(onto ? load<A>(to + j) : Vec<A>(A(0)), a, b));
      }
    }
  }

  // f(vectors of panel p), as a constant
  template <class WithWidth>
  void with_width(int64_t p, const WithWidth& f) const {
    switch (first_vector(p + 1) - first_vector(p)) {
      case 1: return f(std::integral_constant<int, 1>());
      case 2: return f(std::integral_constant<int, 2>());
      case 3: return f(std::integral_constant<int, 3>());
      default: return f(std::integral_constant<int, 4>());
    }
  }

  // M rows of a panel of NV whole vectors, to or onto row_of(m).
  template <int NV, class RowOf>
  static void multiply_whole(int64_t M, const Product<F>& product, const RowOf& row_of, bool onto) {
    constexpr int kWidth = NV * kLanes;
    alignas(64) A sums[kTileRows<NV> * kWidth];
    const int64_t tiles = ceil_div(M, product.left.tiled ? kLeftRows : kTileRows<NV>);
    for (int64_t i = 0, m = 0; i < tiles; ++i) {
      const int rows = int(M * (i + 1) / tiles - m);
      A* results[kTileRows<NV>];
      for (int j = 0; j < rows; ++j) fetch_for_writing(results[j] = row_of(m + j), kWidth);
      tile_rows<F, NV>(rows, product.K, product.left.tile(m, rows, product.K), product.panel,
                       Sums<A>{sums, kWidth, results, onto},
                       product.prefetch(product.panel.data, product.next, i, tiles));
      m += rows;
    }
  }

  template <int NV, class RowOf>
  void multiply_width(int64_t p, int64_t next, const F* packed, int64_t M, const Left<F>& left, const RowOf& row_of,
                      int64_t columns, bool onto) const {
    const int64_t first = first_vector(p) * kLanes;
    const int n = int(least(NV * kLanes, columns - first));
    const auto at = [&](int64_t p) { return packed + first_vector(p) * kLanes * words<F>(K) * kDepth; };
    const Panel<F> panel = unpacked ? Panel<F>{unpacked + first, N} : Panel<F>{at(p), NV * kLanes * kDepth};
    const bool fetches = !unpacked && next >= 0 && elements() * int64_t(sizeof(F)) > near_bytes();
    const Product<F> product{words<F>(K), left, panel, fetches ? at(next) : nullptr};
    if constexpr (std::is_same<std::decay_t<decltype(*row_of(0))>, A>::value)
      if (n == NV * kLanes) return multiply_whole<NV>(M, product, [&](int64_t m) { return row_of(m) + first; }, onto);
    rows_times_panels<NV, 1, F>(
        M, {product}, [&](int64_t m) { fetch_for_writing(row_of(m) + first, n); },
        [&](int64_t m, const A* sums) { store_row<NV>(row_of(m) + first, sums, n, onto); });
  }
};

}  // namespace
}  // namespace fused_rnn
