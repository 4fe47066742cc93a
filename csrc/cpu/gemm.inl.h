// Packed matrix products on one thread. The right-hand matrix is packed into panels of a few vectors' columns, row
// after row of K, so that the innermost loop reads it once, in order. Included by each instruction set's source file.
#pragma once

#include <cstdint>

#include "vector.inl.h"

namespace fused_rnn {
namespace {

constexpr int kMaxVectors = 4;  // widest panel

// Rows of the register tile for a panel of NV vectors: the accumulators, one row of the panel and one broadcast fit.
template <int NV>
constexpr int kTileRows = (FUSED_RNN_REGISTERS - NV - 1) / NV < 8 ? (FUSED_RNN_REGISTERS - NV - 1) / NV : 8;

// The left-hand matrix: element (m, k) is data[m * row + k * col]. Sums run over `block` products before they are added
// to the total: the rounding error of a long sum grows with the length of its parts and their number, not with their
// product.
template <class A>
struct Left {
  const A* data;
  int64_t row, col = 1, block = 128;
};

// to[m, v] = sum over k < K of left(m, k) * panel[k, v] for m < MR and v < NV vectors
template <class A, int MR, int NV>
void tile(int64_t K, Left<A> left, const A* panel, A* to) {
  using V = Vec<A>;
  for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += left.block) {
    V sum[MR][NV];
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) sum[m][v] = V(A(0));
    const int64_t end = k0 + left.block < K ? k0 + left.block : K;
    for (int64_t k = k0; k < end; ++k) {
      V b[NV];
      for (int v = 0; v < NV; ++v) b[v] = load<A>(panel + v * V::kLanes);
      for (int m = 0; m < MR; ++m) {
        const V am(left.data[m * left.row]);
        for (int v = 0; v < NV; ++v) sum[m][v] += am * b[v];
      }
      left.data += left.col;
      panel += NV * V::kLanes;
    }
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) {
        A* total = to + (m * NV + v) * V::kLanes;
        store(total, k0 == 0 ? sum[m][v] : load<A>(total) + sum[m][v]);
      }
  }
}

// `tile` for a number of rows from 1 to MR
template <class A, int NV, int MR = kTileRows<NV>>
FUSED_RNN_INLINE void tile_rows(int rows, int64_t K, Left<A> left, const A* panel, A* to) {
  if constexpr (MR > 1)
    if (rows < MR) return tile_rows<A, NV, MR - 1>(rows, K, left, panel, to);
  tile<A, MR, NV>(K, left, panel, to);
}

// M rows of `left` times one panel; emit(m, sums) gets every row's NV vectors of sums.
template <int NV, class A, class Emit>
FUSED_RNN_INLINE void rows_times_panel(int64_t M, int64_t K, Left<A> left, const A* panel, const Emit& emit) {
  constexpr int kRows = kTileRows<NV>;
  constexpr int kWidth = NV * Vec<A>::kLanes;
  alignas(64) A sums[kRows * kWidth];
  for (int64_t m0 = 0; m0 < M; m0 += kRows) {
    const int rows = int(M - m0 < kRows ? M - m0 : kRows);
    tile_rows<A, NV>(rows, K, left, panel, sums);
    left.data += rows * left.row;
    for (int m = 0; m < rows; ++m) emit(m0 + m, sums + m * kWidth);
  }
}

// ---- The right-hand matrix as it is, transposed: its rows are contiguous ----

template <class A, int kBytes>
struct Part {
  typedef A Lanes __attribute__((vector_size(kBytes)));

  // Halves are added as vectors, down to 16 bytes.
  FUSED_RNN_INLINE static A sum(const Lanes& v) {
    if constexpr (kBytes > 16) {
      typename Part<A, kBytes / 2>::Lanes low, high;
      std::memcpy(&low, &v, sizeof(low));
      std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(low), sizeof(high));
      return Part<A, kBytes / 2>::sum(low + high);
    } else {
      A total(0);
      for (int i = 0; i < kBytes / int(sizeof(A)); ++i) total += v[i];
      return total;
    }
  }
};

template <class A>
FUSED_RNN_INLINE A sum_of_lanes(Vec<A> v) {
  return Part<A, FUSED_RNN_VECTOR_BYTES>::sum(v.v);
}

// to[m * stride + r] = sum over k < K of left[m * row + k] * right[r * K + k] for m < MR and r < NR
template <class A, int MR, int NR, class S>
void dot_tile(int64_t K, const A* left, int64_t row, const S* right, A* to, int64_t stride) {
  using V = Vec<A>;
  V sum[MR][NR];
  for (int m = 0; m < MR; ++m)
    for (int r = 0; r < NR; ++r) sum[m][r] = V(A(0));
  const auto add = [&](int64_t k, int n) __attribute__((always_inline)) {
    V b[NR];
    for (int r = 0; r < NR; ++r) b[r] = load<A>(right + r * K + k, n);
    for (int m = 0; m < MR; ++m) {
      const V a = load<A>(left + m * row + k, n);
      for (int r = 0; r < NR; ++r) sum[m][r] += a * b[r];
    }
  };
  int64_t k = 0;
  for (; k + V::kLanes <= K; k += V::kLanes) add(k, V::kLanes);
  if (k < K) add(k, int(K - k));
  for (int m = 0; m < MR; ++m)
    for (int r = 0; r < NR; ++r) to[m * stride + r] = sum_of_lanes(sum[m][r]);
}

// MR rows of the left-hand matrix with n rows of the right-hand one
template <class A, int MR, class S>
void dot_rows(int64_t n, int64_t K, const A* left, int64_t row, const S* right, A* to, int64_t stride) {
  int64_t r = 0;
  for (; r + 4 <= n; r += 4) dot_tile<A, MR, 4>(K, left, row, right + r * K, to + r, stride);
  for (; r < n; ++r) dot_tile<A, MR, 1>(K, left, row, right + r * K, to + r, stride);
}

// A [K, N] matrix in panels of kMaxVectors vectors; the last panel has as many as it needs. Columns past N are zero.
template <class A>
struct Panels {
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  int64_t K, N;

  int64_t vectors() const { return (N + kLanes - 1) / kLanes; }
  int64_t count() const { return (vectors() + kMaxVectors - 1) / kMaxVectors; }
  int64_t elements() const { return vectors() * kLanes * K; }
  int width(int64_t p) const {  // in vectors
    const int64_t left = vectors() - p * kMaxVectors;
    return int(left < kMaxVectors ? left : kMaxVectors);
  }
  int64_t offset(int64_t p) const { return p * kMaxVectors * kLanes * K; }

  // Pack panel p; row_of(k) points to the N elements of row k.
  template <class RowOf>
  void pack(int64_t p, A* packed, const RowOf& row_of) const {
    const int nv = width(p);
    const int64_t column = p * kMaxVectors * kLanes;
    A* to = packed + offset(p);
    for (int64_t k = 0; k < K; ++k) {
      const auto* from = row_of(k) + column;
      for (int v = 0; v < nv; ++v, to += kLanes) {
        const int64_t left = N - column - v * kLanes;
        store(to, load<A>(from + v * kLanes, int(left < kLanes ? left : kLanes)));
      }
    }
  }

  // emit(m, column, n, sums): n sums of row m from `column` on, of the M rows of `left` times panel p
  template <class Emit>
  void multiply(int64_t p, const A* packed, int64_t M, Left<A> left, const Emit& emit) const {
    switch (width(p)) {
      case 1: return multiply_width<1>(p, packed, M, left, emit);
      case 2: return multiply_width<2>(p, packed, M, left, emit);
      case 3: return multiply_width<3>(p, packed, M, left, emit);
      default: return multiply_width<4>(p, packed, M, left, emit);
    }
  }

 private:
  template <int NV, class Emit>
  void multiply_width(int64_t p, const A* packed, int64_t M, Left<A> left, const Emit& emit) const {
    const int64_t column = p * kMaxVectors * kLanes;
    const int64_t n = N - column < NV * kLanes ? N - column : NV * kLanes;
    rows_times_panel<NV>(M, K, left, packed + offset(p), [&](int64_t m, const A* sums) { emit(m, column, n, sums); });
  }
};

}  // namespace
}  // namespace fused_rnn
