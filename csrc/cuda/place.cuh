// Where a thread of a persistent kernel is: its elements, their addresses from step to step, their rows' lengths and
// where sequences begin in them.
#pragma once

#include "barriers.cuh"
#include "element.cuh"
#include "layout.h"

namespace fused_rnn {

// A warp multiplies `tiles` tiles of the depth, from `first_tile` on, for unit tile `tile` and all rows of its group.
// If it applies the cell, then to row tile `row_tile` of that unit tile: in one block to all 16 units, otherwise to 8
// of them, its `half`. A thread has of these units `unit`, and in one block the one 8 further, in rows `row` and the
// next.
template <bool kOneBlock>
struct Place {
  static constexpr int kElements = kOneBlock ? 4 : 2;  // of a thread, with all their gates

  int group, warp, lane, tile, slice, first_tile, tiles, row_tile, half, unit, row;
  bool applies_cell, exists[kElements];

  template <class S>
  FUSED_RNN_DEVICE Place(const Recurrence<S>& recurrence)
      : warp(kOneBlock ? threadIdx.x / 32 : shuffle(threadIdx.x / 32, 0)), lane(threadIdx.x % 32) {
    const Layout& layout = recurrence.layout;
    if (!kOneBlock) {  // those that apply the cell are on different schedulers, as warps i and i + 4 share one
      const int first = warp / layout.slices * layout.slices;
      warp = first + (warp + 2 * (warp / layout.slices)) % layout.slices;
    }
    group = kOneBlock ? blockIdx.x : blockIdx.x / layout.blocks;
    slice = kOneBlock ? 0 : warp % layout.slices;
    const int block = blockIdx.x % layout.blocks;
    tile = kOneBlock ? warp : layout.first_tile(block) + warp / layout.slices;
    first_tile = slice * layout.depth();
    const int more = layout.tiles() - first_tile;
    tiles = more < layout.depth() ? more : layout.depth();
    row_tile = kOneBlock ? 0 : slice / 2;
    half = kOneBlock ? 0 : slice % 2;
    applies_cell = kOneBlock || (row_tile < layout.row_tiles && tile < layout.first_tile(block + 1));
    unit = tile * kUnitTile + half * 8 + lane / 4;
    row = first_row(recurrence) + row_tile * kBatchTile + 2 * (lane % 4);
    for (int e = 0; e < kElements; ++e)
      exists[e] = applies_cell && unit + unit_of(e) < layout.H && row + row_of(e) < recurrence.parts[0].B;
  }
  // body(e) for each element of the thread.
  template <class Body>
  FUSED_RNN_DEVICE static void for_elements(const Body& body) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) body(e);
  }
  // Index of the group among those of all parts.
  FUSED_RNN_DEVICE int group_of_all(const Layout& layout) const {
    return blockIdx.y * (gridDim.x / layout.blocks) + group;
  }
  // The first row of the group.
  template <class S>
  FUSED_RNN_DEVICE int first_row(const Recurrence<S>& recurrence) const {
    return recurrence.first_row + group * recurrence.layout.rows();
  }
  FUSED_RNN_DEVICE static int unit_of(int e) { return e / 2 * 8; }
  FUSED_RNN_DEVICE static int row_of(int e) { return e % 2; }
  FUSED_RNN_DEVICE int state(int e, int H) const { return (row + row_of(e)) * H + unit + unit_of(e); }
};

// Where the thread's elements are in an array [steps, B, kWidth, H], from step to step. An address, since an array may
// be null.
template <class Number, int kWidth>
class Cursor {
 public:
  template <class S, class Place>
  FUSED_RNN_DEVICE Cursor(Number* array, const Steps<S>& a, const Place& place, int step)
      : address_(
            reinterpret_cast<uintptr_t>(array ? of_element<kWidth>(array, a, step, place.row, place.unit) : array)) {}
  FUSED_RNN_DEVICE Number* of(int e, int H) const {
    Number* const row = rows_on(reinterpret_cast<Number*>(address_), kWidth * Place<true>::row_of(e), H);
    return reinterpret_cast<Number*>(reinterpret_cast<uintptr_t>(row) + Place<true>::unit_of(e) * sizeof(Number));
  }
  FUSED_RNN_DEVICE void advance(int64_t numbers) { address_ += numbers * int64_t(kWidth * sizeof(Number)); }

 private:
  uintptr_t address_;
};

// How many steps each of the thread's rows takes part in, 0 past the end of the batch, and the steps [begin, end) of
// the chunk in which any row of the group does.
struct Lengths {
  int of_row[2], begin, end;

  template <class S, class Place>
  FUSED_RNN_DEVICE Lengths(const Recurrence<S>& recurrence, const Place& place) {
    const auto a = recurrence.part(blockIdx.y);
    const auto length = [&](int row) { return row < a.B ? a.length(row) : 0; };
    for (int i = 0; i < 2; ++i) of_row[i] = length(place.row + i);
    const int first_row = place.first_row(recurrence);
    int longest = 0;
    for (int row = 0; row < recurrence.layout.rows(); ++row) {
      const int one = length(first_row + row);
      longest = one > longest ? one : longest;
    }
    const int last = a.down ? a.count : longest - a.begin, first = a.down ? a.T - longest - a.begin : 0;
    begin = first < 0 ? 0 : first < a.count ? first : a.count;
    end = last < begin ? begin : last < a.count ? last : a.count;
  }
  FUSED_RNN_DEVICE int of(int e) const { return of_row[Place<true>::row_of(e)]; }
  FUSED_RNN_DEVICE bool is_active(int e, int t) const { return t < of(e); }
};

// In which of the thread's rows the state before one time is zero, as Steps::starts_anew has it. For steps with resets;
// the others pay for one branch, which all threads take.
struct Anew {
  uint32_t of_row[2] = {};

  // For time t, unless `is_any` says that there is no such step.
  template <class S, class Place>
  FUSED_RNN_DEVICE void load(const Steps<S>& a, const Place& place, const Lengths& lengths, int t, bool is_any) {
    const int begin = a.beginning(t);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      of_row[i] = 0;
      load_if(is_any && begin < lengths.of_row[i], a.resets + int64_t(begin) * a.B + place.row + i, of_row[i]);
    }
  }
  // The same in other registers than those of the next load: a copy would wait for that.
  FUSED_RNN_DEVICE Anew arrived() const {
    Anew same;
    for (int i = 0; i < 2; ++i) same.of_row[i] = of_row[i] + 1 > 1;
    return same;
  }
  FUSED_RNN_DEVICE bool operator()(int e) const { return of_row[Place<true>::row_of(e)]; }
};

}  // namespace fused_rnn
