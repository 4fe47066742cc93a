// A warp's product of tiles, D [16, 8] += L [16, 16] R [16, 8], in each kind of arithmetic. Of D every thread has four
// sums: rows lane/4 and lane/4 + 8, columns 2 (lane%4) and the next one, as mma.sync lays them out.
//
// D of one step is R of the next: its rows are hidden units, its columns rows of the batch. Transposed, a thread has of
// column lane/4 the units 2 (lane%4), the next one, and both 8 further: a fragment, which is all that a thread needs
// of R in 16 bits. In 32 bits, where a tile is two mma.sync of depth 8, these are units 2t as the instruction's k = t
// and 2t + 1 as its k = t + 4; the columns of L are in that order, too. The first 8 units and the last 8 make half a
// fragment each, from two of D's four sums.
#pragma once

#include "barriers.cuh"
#include "layout.h"
#include "matrix.cuh"
#include "numbers.cuh"
#include "predicated.cuh"

namespace fused_rnn {

constexpr int kLeftNumbers = kUnitTile * kUnitTile, kRightNumbers = kUnitTile * kBatchTile;
constexpr int kFragmentNumbers = kRightNumbers / 32;

template <Math kMath>
struct Tile;

template <class Word>
FUSED_RNN_DEVICE Word load_words(const void* from) {
  return *static_cast<const Word*>(from);
}

// Numbers of 16 bits. A tile in memory is what each lane needs, lane after lane.
template <class Number>
struct NarrowTile {
  using Element = Number;
  using Half = uint32_t;
  using Fragment = uint2;
  using Left = uint4;
  using Right = uint2;

  FUSED_RNN_DEVICE static Number element(float value) { return from_float<Number>(value); }
  FUSED_RNN_DEVICE static Number element(Number value) { return value; }

  // Where a number of L is in memory.
  FUSED_RNN_DEVICE static int left_place(int row, int k) {
    return (row % 8 * 4 + k % 8 / 2) * 8 + (k / 8 * 2 + row / 8) * 2 + k % 2;
  }
  FUSED_RNN_DEVICE static Left load_left(int lane, const Number* tile) { return load_words<Left>(tile + 8 * lane); }
  FUSED_RNN_DEVICE static Right load_right(int lane, const Number* tile) { return load_words<Right>(tile + 4 * lane); }
  FUSED_RNN_DEVICE static int right_place(int lane) { return lane; }

  FUSED_RNN_DEVICE static void multiply_if(bool condition, float (&d)[4], const Left& left, const Right& right) {
    mma_if(condition, d, {left.x, left.y, left.z, left.w}, {right.x, right.y}, Number());
  }
  FUSED_RNN_DEVICE static Half half(float even, float odd) { return transpose_matrix(pack<Number>(even, odd)); }
  FUSED_RNN_DEVICE static Fragment join(Half first, Half second) { return {first, second}; }
};

template <>
struct Tile<Math::kBFloat16> : NarrowTile<BFloat16> {};
template <>
struct Tile<Math::kFloat16> : NarrowTile<Float16> {};

// Numbers of 32 bits.
struct WordTile {
  using Element = float;
  using Half = uint2;
  using Fragment = uint4;

  // Numbers of 32 bits are transposed as their high and their low bits.
  FUSED_RNN_DEVICE static Half half(float even, float odd) {
    const uint32_t a = bit_cast<uint32_t>(even), b = bit_cast<uint32_t>(odd);
    const uint32_t low = transpose_matrix((a & 0xffffu) | b << 16),
                   high = transpose_matrix(a >> 16 | (b & 0xffff0000u));
    return {(low & 0xffffu) | high << 16, low >> 16 | (high & 0xffff0000u)};
  }
  FUSED_RNN_DEVICE static Fragment join(Half first, Half second) { return {first.x, first.y, second.x, second.y}; }
};

// Float32 rounded to TF32.
template <>
struct Tile<Math::kTf32> : WordTile {
  struct Left {
    uint4 half[2];
  };
  using Right = uint4;

  FUSED_RNN_DEVICE static float element(float value) { return round_to_tf32(value); }
  FUSED_RNN_DEVICE static Half half(float even, float odd) { return WordTile::half(element(even), element(odd)); }
  FUSED_RNN_DEVICE static int left_place(int row, int k) {
    return k / 8 * kRightNumbers + (row % 8 * 4 + k % 8 / 2) * 4 + k % 2 * 2 + row / 8;
  }
  FUSED_RNN_DEVICE static Left load_left(int lane, const float* tile) {
    return {{load_words<uint4>(tile + 4 * lane), load_words<uint4>(tile + kRightNumbers + 4 * lane)}};
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const float* tile) { return load_words<Right>(tile + 4 * lane); }
  FUSED_RNN_DEVICE static int right_place(int lane) { return lane; }

  FUSED_RNN_DEVICE static void multiply_if(bool condition, float (&d)[4], const Left& left, const Right& right) {
    const uint4 near = left.half[0], far = left.half[1];
    mma_tf32_if(condition, d, {near.x, near.y, near.z, near.w}, {right.x, right.y});
    mma_tf32_if(condition, d, {far.x, far.y, far.z, far.w}, {right.z, right.w});
  }
};

// Float32 multiply-adds: every thread reads the two rows and two columns that its four sums need. In memory both
// factors are four parts of four k, those of a fragment, and in each part rows or columns one after the other: so the
// rows, or columns, that the threads of a warp read at once are in different banks.
template <>
struct Tile<Math::kFloat32> : WordTile {
  struct Left {
    const float4* rows;
  };
  struct Right {
    const float4* columns;
  };

  FUSED_RNN_DEVICE static float element(float value) { return value; }
  FUSED_RNN_DEVICE static int left_place(int row, int k) {
    return k % 8 / 2 * (4 * kUnitTile) + row * 4 + k / 8 * 2 + k % 2;
  }
  FUSED_RNN_DEVICE static Left load_left(int lane, const float* tile) {
    return {reinterpret_cast<const float4*>(tile) + lane / 4};
  }
  FUSED_RNN_DEVICE static Right load_right(int lane, const float* tile) {
    return {reinterpret_cast<const float4*>(tile) + 2 * (lane % 4)};
  }
  FUSED_RNN_DEVICE static int right_place(int lane) { return lane % 4 * kBatchTile + lane / 4; }

  FUSED_RNN_DEVICE static void add_product(float& sum, float4 a, float4 b) {
    sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  FUSED_RNN_DEVICE static void multiply_if(bool, float (&d)[4], const Left& left, const Right& right) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float4 rows[] = {left.rows[part * kUnitTile], left.rows[part * kUnitTile + 8]};
      const float4 columns[] = {right.columns[part * kBatchTile], right.columns[part * kBatchTile + 1]};
#pragma unroll
      for (int i = 0; i < 4; ++i) add_product(d[i], rows[i / 2], columns[i % 2]);
    }
  }
};

// weight_hh as the left factors of a pass. Row r and depth k of a gate are at [gate, r, k] of [gates, H, H], or
// transposed at [gate, k, r].
template <class S, bool kTransposed>
struct LeftFactors {
  const S* weight_hh;
  int H;

  // A warp copies part of a gate to shared memory, as left tiles one after the other: kUnitTile rows from `row` on,
  // `tiles` of the depth from unit k on. Zeros past H.
  template <class T>
  FUSED_RNN_DEVICE void copy(typename T::Element* to, int lane, int gate, int row, int k, int tiles) const {
    const S* const from = weight_hh + gate * H * H + (kTransposed ? k * H + row : row * H + k);
    if (H % kWide == 0 && reinterpret_cast<uintptr_t>(from) % kBytes == 0)
      copy<T, true>(to, lane, from, H - row, H - k, tiles);
    else
      copy<T, false>(to, lane, from, H - row, H - k, tiles);
  }

 private:
  static constexpr int kBytes = 16, kWide = kBytes / sizeof(S);

  // Global memory is read in lines, of rows or of columns, and each lane has kBatch parts of lines on the way at once.
  template <class T, bool kAligned>
  FUSED_RNN_DEVICE void copy(typename T::Element* to, int lane, const S* from, int rows, int depth, int tiles) const {
    constexpr int kBatch = 4;
    const int lines = kTransposed ? depth : rows, length = kTransposed ? rows : depth;
    const int parts = (kTransposed ? kUnitTile : tiles * kUnitTile) / kWide, count = tiles * kLeftNumbers / kWide;
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
        for (int j = 0; j < kWide; ++j) {
          const int row = kTransposed ? at + j : line, k = kTransposed ? line : at + j;
          to[k / kUnitTile * kLeftNumbers + T::left_place(row, k % kUnitTile)] = T::element(numbers[b][j]);
        }
      }
    }
  }
};

// The weights that one warp multiplies with, on chip for all steps: kGates left factors of one unit tile and one slice
// of the depth. The first kInRegisters tiles of the slice are in registers; whether there may be more, in shared
// memory, is kInShared.
template <Math kMath, int kGates, int kInRegisters, bool kInShared>
class WarpWeights {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  // shared: the warp's part of shared memory, [in_shared, kGates, left tile]. loading: memory for kInRegisters tiles.
  template <class Factors>
  FUSED_RNN_DEVICE WarpWeights(Element* shared, Element* loading, int lane, const Factors& factors, int unit,
                               int first_tile, int tiles)
      : tiles_(tiles), lane_(lane), shared_(shared) {
    const int k = first_tile * kUnitTile;
    if constexpr (kInRegisters > 0) {
      const int count = tiles < kInRegisters ? tiles : kInRegisters;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        factors.template copy<T>(loading, lane, gate, unit, k, count);
        warp_barrier("weights.filled");
#pragma unroll
        for (int i = 0; i < kInRegisters; ++i)
          if (i < tiles) left_[gate][i] = T::load_left(lane, loading + i * kLeftNumbers);
        warp_barrier("weights.taken");
      }
    }
    if constexpr (kInShared)
#pragma unroll 1
      for (int i = kInRegisters; i < tiles; ++i)
        for (int gate = 0; gate < kGates; ++gate)
          factors.template copy<T>(shared_at(i, gate), lane, gate, unit, k + i * kUnitTile, 1);
  }

  // f(i, exists, left) for the tiles of the depth, and some that do not exist; left(gate) is the left factor of tile i.
  template <class F>
  FUSED_RNN_DEVICE void for_each_tile(const F& f) const {
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i)
      f(i, i == 0 || i < tiles_, [&](int gate) -> const typename T::Left& { return left_[gate][i]; });
    if constexpr (kInShared)
#pragma unroll 1  // more at a time cost more registers than a block of this size has
      for (int i = kInRegisters; i < tiles_; ++i)
        f(i, true, [&](int gate) { return T::load_left(lane_, shared_at(i, gate)); });
  }

 private:
  FUSED_RNN_DEVICE Element* shared_at(int i, int gate) const {
    return shared_ + ((i - kInRegisters) * kGates + gate) * kLeftNumbers;
  }

  int tiles_, lane_;
  Element* shared_;
  typename T::Left left_[kGates][kInRegisters > 0 ? kInRegisters : 1];
};

// sums[gate] += left[gate] right[gate] for gates [kFirst, kLast); all gates have one right factor if kOneRight. right:
// the first tile of the first gate's factor; the next gate's is `stride` numbers further.
template <Math kMath, int kFirst, int kLast, bool kOneRight, class Weights, int kGates>
FUSED_RNN_DEVICE void multiply_tiles(float (&sums)[kGates][4], const Weights& weights, int lane,
                                     const typename Tile<kMath>::Element* right, int stride) {
  using T = Tile<kMath>;
  weights.for_each_tile([&](int i, bool exists, const auto& left) {
    typename T::Right factor;
#pragma unroll
    for (int gate = kFirst; gate < kLast; ++gate) {
      if (gate == kFirst || !kOneRight)
        factor = T::load_right(lane, right + (gate - kFirst) * stride + i * kRightNumbers);
      T::multiply_if(exists, sums[gate], left(gate), factor);
    }
  });
}

}  // namespace fused_rnn
