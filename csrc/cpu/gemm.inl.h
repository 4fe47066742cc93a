// Matrix products on one thread. The right-hand matrix is packed into panels of a few vectors' columns, word after word
// of K, so that the innermost loop reads it once, in order. Included by each instruction set's source file.
#pragma once

#include <cstdint>

#include "factor.inl.h"

namespace fused_rnn {
namespace {

constexpr int kMaxVectors = 4;  // widest panel

// Rows of the register tile for a panel of NV vectors: the accumulators, one row of the panel and one broadcast fit.
template <int NV>
constexpr int kTileRows = (FUSED_RNN_REGISTERS - NV - 1) / NV < 8 ? (FUSED_RNN_REGISTERS - NV - 1) / NV : 8;

// The left-hand matrix: word k of row m begins at data[m * row + k * col].
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
  bool far = false;   // the panel is not in the second-level cache yet
};

// A panel that comes from further away is asked for so many words before it is used.
constexpr int kWordsAhead = 16;
constexpr int64_t kNearBytes = 512 * 1024;  // of all panels together, if they are to stay there from step to step

// As many chains as keep the adders busy with M rows.
FUSED_RNN_INLINE int chains_for(int64_t M) { return M == 1 ? 4 : M <= 3 ? 2 : 1; }

// A panel of the right-hand matrix: the vectors of word k begin at data[k * row].
template <class F>
struct Panel {
  const F* data;
  int64_t row;
};

// to[m, v] = sum over k < K of left(m, k) * panel[k, v] for m < MR and v < NV vectors
template <class F, int MR, int NV, int kChains, bool kFar = false, class A = typename Factor<F>::A>
void tile(int64_t K, Left<F> left, Panel<F> panel, A* to) {
  using V = Vec<A>;
  constexpr int64_t kWord = V::kLanes * Factor<F>::kDepth;
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += left.block * kChains) {
    V sum[kChains][MR][NV];
    FUSED_RNN_UNROLL
    for (int c = 0; c < kChains; ++c) FUSED_RNN_UNROLL
    for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
    for (int v = 0; v < NV; ++v) sum[c][m][v] = V(A(0));
    const auto add = [&](int c) __attribute__((always_inline)) {
      V b[NV];
      FUSED_RNN_UNROLL
      for (int v = 0; v < NV; ++v) {
        std::memcpy(&b[v].v, panel.data + v * kWord, sizeof(b[v].v));
        if constexpr (kFar) __builtin_prefetch(panel.data + kWordsAhead * panel.row + v * kWord);
      }
      FUSED_RNN_UNROLL
      for (int m = 0; m < MR; ++m) {
        const V a = Factor<F>::broadcast(left.data + m * left.row);
        FUSED_RNN_UNROLL
        for (int v = 0; v < NV; ++v) sum[c][m][v] = Factor<F>::add_product(sum[c][m][v], a, b[v]);
      }
      left.data += left.col;
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
    FUSED_RNN_UNROLL
    for (int m = 0; m < MR; ++m) FUSED_RNN_UNROLL
    for (int v = 0; v < NV; ++v) {
      FUSED_RNN_UNROLL
      for (int c = 1; c < kChains; ++c) sum[0][m][v] += sum[c][m][v];
      A* total = to + (m * NV + v) * V::kLanes;
      store(total, k0 == 0 && !left.onto ? sum[0][m][v] : load<A>(total) + sum[0][m][v]);
    }
  }
}

// `tile` for a number of rows from 1 to MR
template <class F, int NV, int MR = kTileRows<NV>, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void tile_rows(int rows, int64_t K, const Left<F>& left, Panel<F> panel, A* to) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_rows<F, NV, MR - 1>(rows, K, left, panel, to);
  if constexpr (MR == 1)
    if (left.chains == 4) return tile<F, MR, NV, 4>(K, left, panel, to);
  if constexpr (MR <= 3)
    if (left.chains == 2) return tile<F, MR, NV, 2>(K, left, panel, to);
  if constexpr (MR > 3)
    if (left.far) return tile<F, MR, NV, 1, true>(K, left, panel, to);
  tile<F, MR, NV, 1>(K, left, panel, to);
}

// M rows of `left` times one panel, in tiles of about equal numbers of rows; emit(m, sums) gets every row's NV vectors
// of sums.
template <int NV, class F, class Emit, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void rows_times_panel(int64_t M, int64_t K, Left<F> left, Panel<F> panel, const Emit& emit) {
  constexpr int kRows = kTileRows<NV>;
  constexpr int kWidth = NV * Vec<A>::kLanes;
  alignas(64) A sums[kRows * kWidth];
  const int64_t tiles = ceil_div(M, kRows);
  for (int64_t i = 0, m0 = 0; i < tiles; ++i) {
    const int rows = int(M * (i + 1) / tiles - m0);
    tile_rows<F, NV>(rows, K, left, panel, sums);
    left.data += rows * left.row;
    left.far = false;
    for (int m = 0; m < rows; ++m) emit(m0 + m, sums + m * kWidth);
    m0 += rows;
  }
}

// The same for two products that are added: M rows of `a` times panel_a and of `b` times panel_b.
template <int NV, class F, class Emit, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void rows_times_panels(int64_t M, int64_t Ka, Left<F> a, Panel<F> panel_a, int64_t Kb, Left<F> b,
                                        Panel<F> panel_b, const Emit& emit) {
  constexpr int kRows = kTileRows<NV>;
  constexpr int kWidth = NV * Vec<A>::kLanes;
  alignas(64) A sums[kRows * kWidth];
  const int64_t tiles = ceil_div(M, kRows);
  b.onto = true;
  for (int64_t i = 0, m0 = 0; i < tiles; ++i) {
    const int rows = int(M * (i + 1) / tiles - m0);
    tile_rows<F, NV>(rows, Ka, a, panel_a, sums);
    tile_rows<F, NV>(rows, Kb, b, panel_b, sums);
    a.data += rows * a.row, b.data += rows * b.row;
    a.far = b.far = false;
    for (int m = 0; m < rows; ++m) emit(m0 + m, sums + m * kWidth);
    m0 += rows;
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
constexpr int kDotRows = (FUSED_RNN_REGISTERS - kDotColumns<A> - 1) / kDotColumns<A>;

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
      V b[kColumns];
      FUSED_RNN_UNROLL
      for (int r = 0; r < kColumns; ++r) b[r] = load_words<F>(right[r] + k, elements);
      FUSED_RNN_UNROLL
      for (int m = 0; m < MR; ++m) {
        const V a = load_words<F>(d.left + m * d.row + k, elements);
        FUSED_RNN_UNROLL
        for (int r = 0; r < kColumns; ++r) sum[m][r] = Factor<F>::add_product(sum[m][r], a, b[r]);
      }
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

  // Pack panel p; row_of(k) points to the N elements of row k.
  template <class RowOf>
  void pack(int64_t p, F* packed, const RowOf& row_of) const {
    if (unpacked) return;
    const int64_t first = first_vector(p), end = first_vector(p + 1);
    F* to = packed + first * kLanes * words<F>(K) * kDepth;
    for (int64_t k = 0; k < K; k += kDepth)
      for (int64_t v = first; v < end; ++v, to += kLanes * kDepth) {
        const int64_t column = v * kLanes;
        const int n = int(least(kLanes, N - column));
        Vec<A> word;
        if constexpr (kDepth == 1)
          word = load<A>(row_of(k) + column, n);
        else
          word = Factor<F>::paired(row_of(k) + column, k + 1 < K ? row_of(k + 1) + column : nullptr, n);
        std::memcpy(to, &word.v, sizeof(word.v));
      }
  }

  // emit(m, v, sum): the sum of row m in the columns of vector v, of the M rows of `left` times panel p
  template <class Emit>
  void multiply(int64_t p, const F* packed, int64_t M, Left<F> left, const Emit& emit) const {
    switch (first_vector(p + 1) - first_vector(p)) {
      case 1: return multiply_width<1>(p, packed, M, left, emit);
      case 2: return multiply_width<2>(p, packed, M, left, emit);
      case 3: return multiply_width<3>(p, packed, M, left, emit);
      default: return multiply_width<4>(p, packed, M, left, emit);
    }
  }

 private:
  template <int NV, class Emit>
  void multiply_width(int64_t p, const F* packed, int64_t M, Left<F> left, const Emit& emit) const {
    const int64_t first = first_vector(p) * kLanes;
    const Panel<F> panel = unpacked ? Panel<F>{unpacked + first, N}
                                    : Panel<F>{packed + first * words<F>(K) * kDepth, NV * kLanes * kDepth};
    left.far = elements() * int64_t(sizeof(F)) > kNearBytes;
    rows_times_panel<NV>(M, words<F>(K), left, panel, [&](int64_t m, const A* sums) {
      for (int v = 0; v < NV; ++v) emit(m, first_vector(p) + v, load<A>(sums + v * kLanes));
    });
  }
};

}  // namespace
}  // namespace fused_rnn
