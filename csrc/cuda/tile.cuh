// A warp's product of tiles, D [16, 8] += L [16, depth] R [depth, 8], in each kind of arithmetic. Of D every thread has
// four numbers: rows lane/4 and lane/4 + 8, columns 2 (lane%4) and the next one, as mma.sync lays them out. R is in
// shared memory, a column after the other, and L row after row.
#pragma once

#include "barriers.cuh"
#include "block_layout.h"
#include "matrix.cuh"
#include "numbers.cuh"
#include "predicated.cuh"

namespace fused_rnn {

template <Math kMath>
struct Tile;

// A tile of mma.sync, whose rows of kDepth numbers take 32 bytes: 16 numbers of 16 bits or 8 of 32. R is loaded for
// kTiles of them at once.
template <class Number>
struct MmaTile {
  using Element = Number;
  static constexpr int kDepth = 32 / sizeof(Element), kHalf = kDepth / 2, kTiles = 2;
  struct Left {
    uint32_t r[4];
  };
  struct Right {
    uint32_t r[4];
  };

  FUSED_RNN_DEVICE static Left load_left(int lane, const Element* from, int stride) {
    Left left;
    ldmatrix_x4(left.r, from + lane % 16 * stride + lane / 16 * kHalf);
    return left;
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const Element* from, int stride) {
    Right right;
    ldmatrix_x4(right.r, from + lane % 8 * stride + lane / 8 * kHalf);
    return right;
  }
};

// Numbers of 16 bits.
template <class Number>
struct HalfTile : MmaTile<Number> {
  FUSED_RNN_DEVICE static Number element(float value) { return from_float<Number>(value); }
  FUSED_RNN_DEVICE static Number element(Number value) { return value; }
  FUSED_RNN_DEVICE static void multiply_if(bool condition, float (&d)[4], const typename MmaTile<Number>::Left& left,
                                           const typename MmaTile<Number>::Right& right, int tile) {
    mma_if(condition, d, left.r, {right.r[2 * tile], right.r[2 * tile + 1]}, Number());
  }
};

template <>
struct Tile<Math::kBFloat16> : HalfTile<BFloat16> {};
template <>
struct Tile<Math::kFloat16> : HalfTile<Float16> {};

// Float32 rounded to TF32.
template <>
struct Tile<Math::kTf32> : MmaTile<float> {
  FUSED_RNN_DEVICE static float element(float value) { return round_to_tf32(value); }
  FUSED_RNN_DEVICE static void multiply_if(bool condition, float (&d)[4], const Left& left, const Right& right,
                                           int tile) {
    mma_tf32_if(condition, d, left.r, {right.r[2 * tile], right.r[2 * tile + 1]});
  }
};

// Float32 multiply-adds: every thread reads the two rows and two columns that its four sums need.
template <>
struct Tile<Math::kFloat32> {
  using Element = float;
  static constexpr int kDepth = 4, kTiles = 1;
  struct Left {
    float4 row[2];
  };
  struct Right {
    float4 column[2];
  };

  FUSED_RNN_DEVICE static Element element(float value) { return value; }
  FUSED_RNN_DEVICE static float4 load4(const Element* from) { return *reinterpret_cast<const float4*>(from); }

  FUSED_RNN_DEVICE static Left load_left(int lane, const Element* from, int stride) {
    const Element* row = from + lane / 4 * stride;
    return {{load4(row), load4(row + 8 * stride)}};
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const Element* from, int stride) {
    const Element* column = from + 2 * (lane % 4) * stride;
    return {{load4(column), load4(column + stride)}};
  }
  FUSED_RNN_DEVICE static void add_product(float& sum, float4 a, float4 b) {
    sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  FUSED_RNN_DEVICE static void multiply_if(bool, float (&d)[4], const Left& left, const Right& right, int) {
    for (int i = 0; i < 4; ++i) add_product(d[i], left.row[i / 2], right.column[i % 2]);
  }
};

// weight_hh as the left factors of a pass. Row r and depth k of a gate are at [gate, r, k] of [gates, H, H], or
// transposed at [gate, k, r].
template <class S, bool kTransposed>
struct LeftFactors {
  const S* weight_hh;
  int H;

  // A warp copies a gate's rows from `first` on, kUnitTile of them, to its own part of shared memory. Zeros past H.
  template <class T>
  FUSED_RNN_DEVICE void copy(typename T::Element* rows, int stride, int padded, int lane, int gate, int first) const {
    const S* const from = weight_hh + gate * H * H + first * (kTransposed ? 1 : H);
    if (H % kWide == 0 && reinterpret_cast<uintptr_t>(from) % kBytes == 0)
      copy<T, true>(rows, stride, padded, lane, from, H - first);
    else
      copy<T, false>(rows, stride, padded, lane, from, H - first);
  }

 private:
  static constexpr int kBytes = 16, kWide = kBytes / sizeof(S);

  // Global memory is read in lines, of rows or of columns, and each lane has kBatch parts of lines on the way at once.
  template <class T, bool kAligned>
  FUSED_RNN_DEVICE void copy(typename T::Element* rows, int stride, int padded, int lane, const S* from,
                             int units) const {
    constexpr int kBatch = 4;
    const int lines = kTransposed ? H : units, length = kTransposed ? units : H;
    const int parts = (kTransposed ? kUnitTile : padded) / kWide, count = kUnitTile * padded / kWide;
#pragma unroll 1
    for (int first = lane; first < count; first += 32 * kBatch) {
      S numbers[kBatch][kWide];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + 32 * b, line = i / parts, at = i % parts * kWide;
        const bool exists = i < count && line < lines;
        const S* const part = from + line * H + at;
        if constexpr (kAligned) {
          load16_if(exists && at < length, part, numbers[b]);
        } else {
#pragma unroll
          for (int j = 0; j < kWide; ++j) {
            uint32_t bits = 0;
            load_if(exists && at + j < length, part + j, bits);
            numbers[b][j] = from_bits<S>(bits);
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = first + 32 * b, line = i / parts, at = i % parts * kWide;
        if (i >= count) break;
#pragma unroll
        for (int j = 0; j < kWide; ++j)
          rows[kTransposed ? (at + j) * stride + line : line * stride + at + j] = T::element(numbers[b][j]);
      }
    }
  }
};

// The weights that one warp multiplies with: kGates left factors of [16, padded], on chip for all steps.
// for_each_load(f) calls f(i, tiles, left) for the tiles of the depth from i on for which one right factor is loaded;
// `tiles` of them, or more, exist, and left(j, gate) is the left factor of tile i + j.
template <Math kMath, int kGates, bool kResident>
class WarpWeights;

// In registers, past a part of shared memory that holds one gate at a time.
template <Math kMath, int kGates>
class WarpWeights<kMath, kGates, true> {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  template <class Factors>
  FUSED_RNN_DEVICE WarpWeights(const BlockLayout& layout, unsigned char* memory, int warp, int lane,
                               const Factors& factors)
      : tiles_(layout.padded() / T::kDepth) {
    const int stride = layout.stride();
    Element* const rows = reinterpret_cast<Element*>(memory) + warp * kUnitTile * stride;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      factors.template copy<T>(rows, stride, layout.padded(), lane, gate, warp * kUnitTile);
      warp_barrier("weights.filled");
#pragma unroll
      for (int i = 0; i < kResidentDepth; ++i)
        if (i < tiles_) left_[gate][i] = T::load_left(lane, rows + i * T::kDepth, stride);
      warp_barrier("weights.taken");
    }
  }
  template <class F>
  FUSED_RNN_DEVICE void for_each_load(const F& f) const {
#pragma unroll
    for (int i = 0; i < kResidentDepth; i += T::kTiles)
      f(i, tiles_ - i, [&](int j, int gate) -> const typename T::Left& { return left_[gate][i + j]; });
  }

 private:
  int tiles_;
  typename T::Left left_[kGates][kResidentDepth];
};

// In shared memory.
template <Math kMath, int kGates>
class WarpWeights<kMath, kGates, false> {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  template <class Factors>
  FUSED_RNN_DEVICE WarpWeights(const BlockLayout& layout, unsigned char* memory, int warp, int lane,
                               const Factors& factors)
      : tiles_(layout.padded() / T::kDepth),
        stride_(layout.stride()),
        lane_(lane),
        rows_(reinterpret_cast<Element*>(memory) + warp * kGates * kUnitTile * stride_) {
    for (int gate = 0; gate < kGates; ++gate)
      factors.template copy<T>(rows_ + gate * kUnitTile * stride_, stride_, layout.padded(), lane, gate,
                               warp * kUnitTile);
    // No barrier: both passes have one of the whole block before their first product.
  }
  template <class F>
  FUSED_RNN_DEVICE void for_each_load(const F& f) const {
#pragma unroll 1  // more at a time cost more registers than a block of this size has
    for (int i = 0; i < tiles_; i += T::kTiles)
      f(i, tiles_ - i, [&](int j, int gate) {
        return T::load_left(lane_, rows_ + gate * kUnitTile * stride_ + (i + j) * T::kDepth, stride_);
      });
  }

 private:
  int tiles_, stride_, lane_;
  Element* rows_;
};

// sums[gate] += left[gate] right[gate] for gates [kFirst, kLast); all gates have one right factor if kOneRight.
template <Math kMath, int kFirst, int kLast, bool kOneRight, class Weights, int kGates>
FUSED_RNN_DEVICE void multiply(float (&sums)[kGates][4], const Weights& weights, int lane,
                               const typename Tile<kMath>::Element* right, int stride) {
  using T = Tile<kMath>;
  weights.for_each_load([&](int i, int tiles, const auto& left) {
    typename T::Right rights[kOneRight ? 1 : kGates];
#pragma unroll
    for (int gate = kOneRight ? 0 : kFirst; gate < (kOneRight ? 1 : kLast); ++gate)
      rights[gate] = T::load_right(lane, right + i * T::kDepth + gate * kBatchTile * stride, stride);
#pragma unroll
    for (int j = 0; j < T::kTiles; ++j)
#pragma unroll
      for (int gate = kFirst; gate < kLast; ++gate)
        T::multiply_if(i + j == 0 || j < tiles, sums[gate], left(j, gate), rights[kOneRight ? 0 : gate], j);
  });
}

}  // namespace fused_rnn
