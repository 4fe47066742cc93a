// A right-hand matrix in panels, packed or where it is, and the products with it that the backward needs. Included by
// each instruction set's source file.
#pragma once

#include "gemm.inl.h"

namespace fused_rnn {
namespace {

// Rows of one block of a matrix that few rows are multiplied by, once: a packed block stays in the second-level cache.
constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kNearColumns = 128;  // rows so short are used in place: the block stays in the first-level cache

// A [K, N] matrix in panels of at most `widest` vectors, all of about the same width. Packed, columns past N are
// zero, and so is what fills the last word of K. Or the panels are used where they are, if vectors fill the rows.
template <class F>
struct Panels {
  using A = typename Factor<F>::A;
  static constexpr int64_t kLanes = Vec<A>::kLanes, kDepth = Factor<F>::kDepth, kWords = Factor<F>::kWords;
  int64_t K, N;
  const F* unpacked = nullptr;
  int widest = kMaxVectors;  // vectors of a panel, at most

  int64_t vectors() const { return ceil_div(N, kLanes); }
  int64_t count() const { return ceil_div(vectors(), widest); }
  int64_t elements() const { return vectors() * kLanes * words<F>(K) * kDepth; }
  int64_t packed_elements() const { return unpacked ? 0 : elements(); }
  int64_t first_vector(int64_t p) const { return vectors() * p / count(); }  // of panel p; p may be count()

  // Pack panels [p0, p1), some rows after the other; row_of(k) points to the N elements of row k.
  template <class RowOf>
  void pack(int64_t p0, int64_t p1, F* packed, const RowOf& row_of) const {
    constexpr int64_t kRows = 8;
    const int64_t whole = unpacked ? 0 : words<F>(K) * kDepth;
    for (int64_t k = 0; k < whole; k += kRows)
      for (int64_t p = p0; p < p1; ++p) {
        const int64_t first = first_vector(p), end = first_vector(p + 1);
        F* const to = packed + (first * words<F>(K) * kDepth + (end - first) * k) * kLanes;
        pack(first, end, k, least(whole, k + kRows), to, row_of);
      }
  }

  // Vectors [first, end) of rows [k0, k1), one row after the other; rows from K on are zero.
  template <class RowOf>
  void pack(int64_t first, int64_t end, int64_t k0, int64_t k1, F* to, const RowOf& row_of) const {
    const int64_t whole = least(end, N / kLanes);
    for (int64_t k = k0; k < k1; k += kDepth) {
      const auto* row = kWords == 1 || k < K ? row_of(k) : nullptr;
      const auto* next = kDepth > 1 && k + 1 < K ? row_of(k + 1) : nullptr;
      const auto pack_vector = [&](int64_t v, int n) __attribute__((always_inline)) {
        Vec<A> word;
        if constexpr (kDepth == 1)
          word = load<A>(row + v * kLanes, n);
        else
          word = Factor<F>::paired(row ? row + v * kLanes : nullptr, next ? next + v * kLanes : nullptr, n);
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
    Left<F> some = left;
    for (RowTiles tile(M, ceil_div(M, kLeftRows)); tile.begin() < M; tile.next()) {
      const int64_t m = tile.begin();
      const int rows = tile.rows();
      some.move(left, m, rows, words<F>(K));
      for (int64_t p = 0; p < count(); ++p) {
        if constexpr (std::is_same<T, A>::value)
          if (direct) {
            with_width(p, [&](auto width) {
              const int64_t first = first_vector(p) * kLanes;
              const Panel<F> panel{packed + first * words<F>(K) * kDepth, width * kLanes * kDepth};
              tile_rows<F, width>(words<F>(K), some, panel, Sums<A>{to + m * N + first, N}, {}, rows);
            });
            continue;
          }
        multiply(p, -1, packed, rows, some, Rows<T>{to + m * N, N}, N, onto);
      }
    }
  }

  // Scratch memory of multiply_once for M rows: a block of packed rows of this matrix, and sums.
  int64_t block_elements() const { return vectors() * kLanes * kRowsAtOnce; }
  int64_t sums_elements(int64_t M) const { return vectors() * kLanes * M; }

  // `multiply` for panels [p0, p1), in one pass over the rows of a matrix that is not packed, `source`.
  template <class S, class T>
  void multiply_once(int64_t p0, int64_t p1, const Rows<const S>& source, F* block, A* sums, int64_t M, Left<F> left,
                     const Rows<T>& to, int64_t columns, bool onto) const {
    const F* const start = left.data;
    const bool in_place = kDepth == 1 && std::is_same<S, F>::value && N % kLanes == 0 &&
                          (M <= kTileRows<kMaxVectors> || N <= kNearColumns);
    const auto packed = [&](int64_t p) { return block + first_vector(p) * kLanes * kRowsAtOnce; };
    for (int64_t k0 = 0; k0 < K; k0 += kRowsAtOnce) {
      const int64_t k1 = least(K, k0 + kRowsAtOnce);
      for (int64_t k = k0; k < k0 + words<F>(k1 - k0) * kDepth && !in_place; k += kDepth)
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t first = first_vector(p), end = first_vector(p + 1);
          pack(first, end, k, k + 1, packed(p) + (k - k0) * (end - first) * kLanes, source);
        }
      left.onto = k0 > 0;
      for (int64_t p = p0; p < p1; ++p)
        with_width(p, [&](auto width) {
          constexpr int NV = width;
          left.data = start + k0 / kDepth * left.col;
          Panel<F> panel{packed(p), NV * kLanes * kDepth};
          if constexpr (std::is_same<S, F>::value)
            if (in_place) panel = {source(k0) + first_vector(p) * kLanes, N};
          Sums<A> to{sums + first_vector(p) * M * kLanes, NV * kLanes};
          for (RowTiles tile(M, ceil_div(M, kTileRows<NV>)); tile.begin() < M; tile.next()) {
            tile_rows<F, NV>(words<F>(k1 - k0), left, panel, to, {}, tile.rows());
            left.data += tile.rows() * left.row;
            to.to += tile.rows() * to.row;
          }
        });
    }
    for (int64_t p = p0; p < p1; ++p)
      with_width(p, [&](auto width) {
        constexpr int NV = width;
        const int64_t first = first_vector(p) * kLanes;
        for (int64_t m = 0; m < M; ++m)
          store_row<NV>(to(m) + first, sums + first * M + m * NV * kLanes, int(least(NV * kLanes, columns - first)),
                        onto);
      });
  }

  // Multiplies M rows of `left` by panel p. The columns of that panel in row m of the product go to to(m), or are added
  // to the numbers there if `onto`; `columns` is the length of a row.
  template <class T>
  void multiply(int64_t p, int64_t next, const F* packed, int64_t M, const Left<F>& left, const Rows<T>& to,
                int64_t columns, bool onto) const {
    with_width(p, [&](auto width) { multiply_width<width>(p, next, packed, M, left, to, columns, onto); });
  }

 private:
  // The same for a single word of K: then the packed panels are one row.
  void multiply_one_word(const F* packed, int64_t M, const Left<F>& left, A* to, bool onto) const {
    for (int64_t m = 0; m < M; ++m, to += N) {
      const Vec<A> a = Factor<F>::broadcast(left.data + m * (left.tiled ? kDepth : left.row));
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

  // M rows of a panel of NV whole vectors, to or onto to(m).
  template <int NV>
  static void multiply_whole(int64_t M, const Product<F>& product, const Rows<A>& to, bool onto) {
    constexpr int kWidth = NV * kLanes;
    alignas(64) A sums[kTileRows<NV> * kWidth];
    const int64_t tiles = product.left.tiled ? ceil_div(M, kLeftRows) : ceil_div(M, kTileRows<NV>);
    Prefetch prefetch = product.prefetch(product.panel.data, product.next, tiles);
    Left<F> left = product.left;
    A* results[kTileRows<NV>];
    const Sums<A> to_results{sums, kWidth, results, onto};
    for (RowTiles tile(M, tiles); tile.begin() < M; tile.next()) {
      const int rows = tile.rows();
      left.move(product.left, tile.begin(), rows, product.K);
      for (int j = 0; j < rows; ++j) fetch_for_writing(results[j] = to(tile.begin() + j), kWidth);
      tile_rows<F, NV>(product.K, left, product.panel, to_results, prefetch, rows);
      prefetch = prefetch.after(product.K);
    }
  }

  template <int NV, class T>
  void multiply_width(int64_t p, int64_t next, const F* packed, int64_t M, const Left<F>& left, Rows<T> to,
                      int64_t columns, bool onto) const {
    const int64_t first = first_vector(p) * kLanes;
    const int n = int(least(NV * kLanes, columns - first));
    const auto at = [&](int64_t p) { return packed + first_vector(p) * kLanes * words<F>(K) * kDepth; };
    const Panel<F> panel = unpacked ? Panel<F>{unpacked + first, N} : Panel<F>{at(p), NV * kLanes * kDepth};
    const bool fetches = !unpacked && next >= 0 && elements() * int64_t(sizeof(F)) > near_bytes();
    const Product<F> product{words<F>(K), left, panel, fetches ? at(next) : nullptr};
    to.first += first;
    if constexpr (std::is_same<T, A>::value)
      if (n == NV * kLanes) return multiply_whole<NV>(M, product, to, onto);
    rows_times_panels<NV, 1, F>(
        M, {product}, [&](int64_t m) { fetch_for_writing(to(m), n); },
        [&](int64_t m, const A* sums) { store_row<NV>(to(m), sums, n, onto); });
  }
};

}  // namespace
}  // namespace fused_rnn
