// Operands and results of a tile of a product. Included by each instruction set's source file.
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

// The number that an int8 of a row stands for is the int8 times `scale`. A sum of its products is `shift` too large.
struct RowScale {
  float scale;
  int32_t shift;
};

// The left-hand matrix: word k of row m begins at data[m * row + k * col]. Or it is in tiles of about equal numbers of
// rows, at most kLeftRows; a tile holds word 0 of all its rows, then word 1 of all its rows, and so on.
//
// Sums run over `block` words before they are added to the total: the rounding error of a long sum grows with the
// length of its parts and their number, not with their product. `chains` sums of every chains-th word grow at once:
// with few rows the processor would wait for each addition. Both decide the bits of a result, so neither may depend on
// how rows were divided among threads.
template <class F>
struct Left {
  static constexpr int64_t kBlock = 256 / Factor<F>::kParts;
  const left_t<F>* data;
  int64_t row, col = Factor<F>::kDepth, block = kBlock;
  int chains = 1;
  bool onto = false;  // add to the sums that are already there
  bool tiled = false;
  const RowScale* scales = nullptr;  // of rows of int8

  // Becomes rows [m, m + rows) of `all`, of which it is a copy. They must be one tile of K words if it is tiled.
  FUSED_RNN_INLINE void move(const Left& all, int64_t m, int64_t rows, int64_t K) {
    constexpr int64_t kDepth = Factor<F>::kDepth;
    data = all.data + m * (tiled ? K * kDepth : row);
    if (tiled) row = kDepth, col = rows * kDepth;
  }
};

// M rows in `count` tiles of about equal numbers of rows, one after the other: tile i begins at row M * i / count.
class RowTiles {
 public:
  FUSED_RNN_INLINE RowTiles(int64_t M, int64_t count)
      : count_(count), whole_(count > 1 ? M / count : M), rest_(M - whole_ * count) {}
  FUSED_RNN_INLINE int64_t begin() const { return begin_; }
  FUSED_RNN_INLINE int rows() const { return int(whole_ + (part_ + rest_ >= count_)); }
  FUSED_RNN_INLINE void next() {
    begin_ += rows();
    part_ += rest_;
    if (part_ >= count_) part_ -= count_;
  }

 private:
  int64_t count_, whole_, rest_;
  int64_t begin_ = 0, part_ = 0;  // part_: the numerator of the fraction that `begin_` leaves off
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
  // That of the words from `words` on.
  FUSED_RNN_INLINE Prefetch after(int64_t words) const { return {at + words * step, step, lines}; }
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

// Whether a weight of S can be used where it is.
template <class F, class S>
constexpr bool kUsedInPlace = std::is_same<S, F>::value || Factor<F>::kDepth == 1;

// A left-hand matrix and a weight that is used where it is, both with K numbers a row. `right`: the weight's first row
// for the first gate; that for the next gate is `gate` numbers further.
template <class F, class S>
struct Dots {
  Left<F> left;
  const S* right;
  int64_t K, gate;
};

// Rows of a matrix: row m is row which[m] of those from `first` on, or the m-th where there is no `which`.
template <class T>
struct Rows {
  T* first;
  int64_t row;  // from one to the next
  const int64_t* which = nullptr;
  FUSED_RNN_INLINE T* operator()(int64_t m) const { return first + (which ? which[m] : m) * row; }
};

// Where the sums of a tile are stored: in rows of `to`, `row` apart. If there are `results`, `to` is scratch memory,
// and row m goes to results[m], or is added to it if `onto`.
template <class A>
struct Sums {
  A* to;
  int64_t row;
  A* const* results = nullptr;
  bool onto = false;
};

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
