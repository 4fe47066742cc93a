// Columns of a matrix as the left-hand matrix of a product. Included by each instruction set's source file.
#pragma once

#include "gemm.inl.h"

namespace fused_rnn {
namespace {

// Elements of `to` below, for `count` columns of K rows: the last vector may be written whole.
template <class F>
int64_t columns_elements(int64_t K, int64_t count) {
  return (words<F>(K) * count + Vec<typename Factor<F>::A>::kLanes) * Factor<F>::kDepth;
}

constexpr int64_t kLeastBlock = 16;  // words in a part of a sum: PyTorch's sums are as exact

// Words in a part of a sum of n: near the square root of n, where the rounding errors of parts and total are least.
FUSED_RNN_INLINE int64_t sum_block(int64_t n) {
  int64_t block = kLeastBlock;
  while (block < 4 * kLeastBlock && block * block <= n) block *= 2;
  return block;
}

constexpr int64_t kSummedRows = 16;  // in a part of a column's sum: PyTorch's sums are as exact

// from[:, r] for r < count as a left-hand matrix in tiles of `to`, and its sum to or onto sums[r], if that is not null.
template <class F, class A = typename Factor<F>::A>
Left<F> columns_in_tiles(const F* from, int64_t from_row, int64_t K, int64_t count, F* to, A* sums, bool onto) {
  using V = Vec<A>;
  constexpr int64_t kLanes = V::kLanes, kDepth = Factor<F>::kDepth;
  constexpr int kVectors = int(ceil_div(kLeftRows, kLanes));
  for (RowTiles tile(count, ceil_div(count, kLeftRows)); tile.begin() < count; tile.next()) {
    const int64_t r = tile.begin(), n = tile.rows();
    const F* row = from + r;
    F* word = to + r * words<F>(K) * kDepth;
    V total[kVectors], part[kVectors];
    for (V* const zeros : {total, part})
      for (int v = 0; v < kVectors; ++v) zeros[v] = V(A(0));
    for (int64_t k = 0; k < K; k += kDepth, row += kDepth * from_row, word += n * kDepth) {
      const F* const next = k + 1 < K ? row + from_row : nullptr;
      for (int v = 0; v < kVectors && v * kLanes < n; ++v) {
        const int64_t at = v * kLanes;
        part[v] += load<A>(row + at);
        // Whole vectors: lanes past the tile's rows are overwritten by the next word.
        if constexpr (kDepth == 1) {
          store(word + at, load<A>(row + at));
        } else {
          store_words(word + at * kDepth, Factor<F>::paired(row + at, next ? next + at : nullptr, kLanes), kLanes);
          if (next) part[v] += load<A>(next + at);
        }
      }
      if ((k + kDepth) % kSummedRows == 0)
        for (int v = 0; v < kVectors; ++v) {
          total[v] += part[v];
          part[v] = V(A(0));
        }
    }
    for (int v = 0; sums && v < kVectors && v * kLanes < n; ++v) {
      A* const sum = sums + r + v * kLanes;
      const int lanes = int(least(kLanes, n - v * kLanes));
      store(sum, onto ? load<A>(sum, lanes) + total[v] + part[v] : total[v] + part[v], lanes);
    }
  }
  Left<F> left{to, 0};
  left.tiled = true;
  return left;
}

// The same in rows: column r becomes row r of `to`, with zeros after it up to a whole number of words.
template <class F, class A = typename Factor<F>::A>
Left<F> columns_in_rows(const F* from, int64_t from_row, int64_t K, int64_t count, F* to, A* sums, bool onto) {
  using V = Vec<A>;
  constexpr int64_t kLanes = V::kLanes, kDepth = Factor<F>::kDepth;
  const int64_t row = words<F>(K) * kDepth;
  for (int64_t r = 0; r < count; r += kLanes) {
    const int lanes = int(least(kLanes, count - r));
    V total = sums && onto ? load<A>(sums + r, lanes) : V(A(0));
    for (int64_t k0 = 0; k0 < K; k0 += kLanes * kDepth) {
      V part(A(0)), pairs[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t k = k0 + i * kDepth;
        const F *const first = from + k * from_row + r, *const second = first + from_row;
        pairs[i] = Factor<F>::paired(k < K ? first : nullptr, k + 1 < K ? second : nullptr, kLanes);
        if (k < K) part += load<A>(first);
        if (k + 1 < K) part += load<A>(second);
      }
      total += part;
      transpose(pairs);
      for (int i = 0; i < lanes; ++i) std::memcpy(to + (r + i) * row + k0, &pairs[i].v, sizeof(pairs[i].v));
    }
    if (sums) store(sums + r, total, lanes);
  }
  return {to, row};
}

// In the layout that the tiles of products read best. Whole vectors of `from` are read, past column count - 1.
template <class F, class A = typename Factor<F>::A>
Left<F> columns_of(const F* from, int64_t from_row, int64_t K, int64_t count, F* to, A* sums, bool onto) {
  if constexpr (Factor<F>::kWords > 1)
    return columns_in_rows(from, from_row, K, count, to, sums, onto);
  else
    return columns_in_tiles(from, from_row, K, count, to, sums, onto);
}

}  // namespace
}  // namespace fused_rnn
