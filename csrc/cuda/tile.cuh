// A warp's product of tiles, D [16, 8] += L [16, depth] R [depth, 8], in each kind of arithmetic. Of D every thread has
// four numbers: rows lane/4 and lane/4 + 8, columns 2 (lane%4) and the next one, as mma.sync lays them out. R is in
// shared memory, a column after the other, and L row after row.
#pragma once

#include "block_layout.h"
#include "ptx.cuh"

namespace fused_rnn {

template <Math kMath>
struct Tile;

// A thread's registers of the two factors of an mma.
struct MmaFactors {
  struct Left {
    uint32_t r[4];
  };
  struct Right {
    uint32_t r[2];
  };
};

// mma.m16n8k16 of 16-bit numbers
template <class Number>
struct HalfTile : MmaFactors {
  using Element = Number;
  static constexpr int kDepth = 16;

  FUSED_RNN_DEVICE static Element element(float value) { return from_float<Number>(value); }
  FUSED_RNN_DEVICE static Left load_left(int lane, const Element* from, int stride) {
    Left left;
    ldmatrix_x4(left.r, from + (lane % 16) * stride + lane / 16 * 8);
    return left;
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const Element* from, int stride) {
    const Element* column = from + lane / 4 * stride + 2 * (lane % 4);
    return {{*reinterpret_cast<const uint32_t*>(column), *reinterpret_cast<const uint32_t*>(column + 8)}};
  }
  FUSED_RNN_DEVICE static void multiply(float (&d)[4], const Left& left, const Right& right) {
    mma(d, left.r, right.r, Number());
  }
};

template <>
struct Tile<Math::kBFloat16> : HalfTile<BFloat16> {};
template <>
struct Tile<Math::kFloat16> : HalfTile<Float16> {};

// mma.m16n8k8 of float32 rounded to TF32
template <>
struct Tile<Math::kTf32> : MmaFactors {
  using Element = float;
  static constexpr int kDepth = 8;

  FUSED_RNN_DEVICE static Element element(float value) { return round_to_tf32(value); }

  FUSED_RNN_DEVICE static Left load_left(int lane, const Element* from, int stride) {
    const Element* row = from + lane / 4 * stride + lane % 4;
    return {{bit_cast<uint32_t>(row[0]), bit_cast<uint32_t>(row[8 * stride]), bit_cast<uint32_t>(row[4]),
             bit_cast<uint32_t>(row[8 * stride + 4])}};
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const Element* from, int stride) {
    const Element* column = from + lane / 4 * stride + lane % 4;
    return {{bit_cast<uint32_t>(column[0]), bit_cast<uint32_t>(column[4])}};
  }
  FUSED_RNN_DEVICE static void multiply(float (&d)[4], const Left& left, const Right& right) {
    mma_tf32(d, left.r, right.r);
  }
};

// Float32 multiply-adds: every thread reads the two rows and two columns that its four sums need.
template <>
struct Tile<Math::kFloat32> {
  using Element = float;
  static constexpr int kDepth = 4;
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
  FUSED_RNN_DEVICE static void multiply(float (&d)[4], const Left& left, const Right& right) {
    for (int i = 0; i < 4; ++i) add_product(d[i], left.row[i / 2], right.column[i % 2]);
  }
};

// Rows of 16 that a warp fills with at(row, k) for k < padded, in its own part of shared memory.
template <class Element, class At>
FUSED_RNN_DEVICE void fill_rows(Element* rows, int stride, int padded, int lane, const At& at) {
  for (int row = 0; row < kUnitTile; ++row)
    for (int k = lane; k < padded; k += 32) rows[row * stride + k] = at(row, k);
}

// The weights that one warp multiplies with: kGates left factors of [16, padded], on chip for all steps. at(gate, row,
// k) is an element; beyond H it gives zeros.
template <Math kMath, int kGates, bool kResident>
class WarpWeights;

// In registers, past a part of shared memory that holds one gate at a time.
template <Math kMath, int kGates>
class WarpWeights<kMath, kGates, true> {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  template <class At>
  FUSED_RNN_DEVICE WarpWeights(const BlockLayout& layout, unsigned char* memory, int warp, int lane, const At& at)
      : tiles_(layout.padded() / T::kDepth) {
    const int stride = layout.stride();
    Element* const rows = reinterpret_cast<Element*>(memory) + warp * kUnitTile * stride;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      fill_rows(rows, stride, layout.padded(), lane, [&](int row, int k) { return at(gate, row, k); });
      warp_barrier("weights.filled");
#pragma unroll
      for (int i = 0; i < kResidentDepth; ++i)
        if (i < tiles_) left_[gate][i] = T::load_left(lane, rows + i * T::kDepth, stride);
      warp_barrier("weights.taken");
    }
  }
  template <class F>
  FUSED_RNN_DEVICE void for_each_depth(const F& f) const {
#pragma unroll
    for (int i = 0; i < kResidentDepth; ++i)
      if (i < tiles_) f(i, [&](int gate) -> const typename T::Left& { return left_[gate][i]; });
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
  template <class At>
  FUSED_RNN_DEVICE WarpWeights(const BlockLayout& layout, unsigned char* memory, int warp, int lane, const At& at)
      : padded_(layout.padded()),
        stride_(layout.stride()),
        lane_(lane),
        rows_(reinterpret_cast<Element*>(memory) + warp * kGates * kUnitTile * stride_) {
    for (int gate = 0; gate < kGates; ++gate)
      fill_rows(rows_ + gate * kUnitTile * stride_, stride_, padded_, lane,
                [&](int row, int k) { return at(gate, row, k); });
    // No barrier: both passes have one of the whole block before their first product.
  }
  template <class F>
  FUSED_RNN_DEVICE void for_each_depth(const F& f) const {
#pragma unroll 1  // more at a time cost more registers than a block of this size has
    for (int i = 0; i < padded_ / T::kDepth; ++i)
      f(i, [&](int gate) { return T::load_left(lane_, rows_ + gate * kUnitTile * stride_ + i * T::kDepth, stride_); });
  }

 private:
  int padded_, stride_, lane_;
  Element* rows_;
};

// sums[gate] += left[gate] right[gate] for gates [kFirst, kLast); all gates have one right factor if gate_stride is 0.
template <Math kMath, int kFirst, int kLast, bool kOneRight, class Weights, int kGates>
FUSED_RNN_DEVICE void multiply(float (&sums)[kGates][4], const Weights& weights, int lane,
                               const typename Tile<kMath>::Element* right, int stride) {
  using T = Tile<kMath>;
  weights.for_each_depth([&](int i, const auto& left) {
    const typename T::Element* at = right + i * T::kDepth;
    if constexpr (kOneRight) {
      const typename T::Right shared = T::load_right(lane, at, stride);
#pragma unroll
      for (int gate = kFirst; gate < kLast; ++gate) T::multiply(sums[gate], left(gate), shared);
    } else {
#pragma unroll
      for (int gate = kFirst; gate < kLast; ++gate)
        T::multiply(sums[gate], left(gate), T::load_right(lane, at + gate * kBatchTile * stride, stride));
    }
  });
}

}  // namespace fused_rnn
