// An exchange: it moves h, or gradients of gates, from the warps that compute them to the warps that multiply them at
// the next product. These right factors are tiles in slots, in two buffers for even and odd steps. All warps call all
// functions in the same order.
//
//   start     once the weights are loaded and all of shared memory is the exchange's
//   put       writes values of a thread's elements into a tile; by warps that apply the cell
//   announce  lets the others have what was put since the last time; by the same warps
//   receive   waits until all have announced, and brings slots [kFirst, kLast) of a buffer to where `right` says
//   total     adds a product to totals [kFirst, kLast) of the warps that apply the cell. sums_of(row_tile, sums) adds
//             the product of this warp's slice of the depth to sums [kFirst, kLast)
//   finish    after the last step of a pass whose last announcement, in that buffer, nothing has received
//
// Pass (PassOf in recurrence.cuh) says how many slots and sums a pass has, and how often its warps meet at a step.
// kRoom: the layout's room where it is known to the compiler, or 0.
//
// A warp may overwrite a buffer two steps later: every warp that reads the buffer has then announced its own next tile,
// and the warp that overwrites has received that tile.
#pragma once

#include "place.cuh"
#include "tile.cuh"

namespace fused_rnn {

// Through shared memory, in a block that has all units of its rows: a warp has the whole depth.
template <Math kMath, class Pass, int kRoom>
class WithinBlock {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  static constexpr bool kOneBlock = true;

  FUSED_RNN_DEVICE WithinBlock(const Layout& layout, const Mailbox&, unsigned char* memory, const Place<true>& place)
      : factors_(reinterpret_cast<Element*>(memory)),
        room_(layout.room()),
        place_(place.tile * kRightNumbers + T::right_place(place.lane) * kFragmentNumbers) {}

  FUSED_RNN_DEVICE void put(int buffer, int slot, const float (&values)[4]) {
    *reinterpret_cast<typename T::Fragment*>(slot_of(buffer, slot) + place_) =
        T::join(T::half(values[0], values[1]), T::half(values[2], values[3]));
  }
  FUSED_RNN_DEVICE void start() {}
  FUSED_RNN_DEVICE void announce(Site) { keep_order(); }
  FUSED_RNN_DEVICE void finish(int) {}
  template <int kFirst, int kLast>
  FUSED_RNN_DEVICE void receive(int, Site site) {
    block_barrier(site);
  }
  FUSED_RNN_DEVICE const Element* right(int buffer, int slot, int) const { return slot_of(buffer, slot); }
  FUSED_RNN_DEVICE int slot_stride() const { return (kRoom ? kRoom : room_) * kRightNumbers; }

  template <int kFirst, int kLast, int n, class SumsOf>
  FUSED_RNN_DEVICE void total(int, float (&totals)[n][4], Site, const SumsOf& sums_of) {
    sums_of(0, totals);
  }

 private:
  FUSED_RNN_DEVICE Element* slot_of(int buffer, int slot) const {
    return factors_ + (buffer * Pass::kSlots + slot) * slot_stride();
  }

  Element* factors_;
  int room_, place_;
};

// What exchanges of several blocks have in common: the warps of a unit tile each have a slice of the depth, and add up
// their sums in shared memory.
template <int kSums>
class SlicedSums {
 public:
  static constexpr bool kOneBlock = false;

  template <int kFirst, int kLast, int n, class SumsOf>
  FUSED_RNN_DEVICE void total(int buffer, float (&totals)[n][2], Site site, const SumsOf& sums_of) {
    static_assert(n == kSums, "a place for every sum of a step");
    constexpr int kHalf = kSums * 32;  // numbers of 8 units and 8 rows
    const int row_tiles = 2 * kHalf * layout_.row_tiles, warps = (buffer * layout_.warps() + place_.warp) * row_tiles;
    float2* to = partials_ + warps;
    const float2* from = to + (2 * place_.row_tile + place_.half) * kHalf - place_.slice * row_tiles;
#pragma unroll 1
    for (int r = 0; r < layout_.row_tiles; ++r, to += 2 * kHalf) {
      float sums[n][4] = {};
      sums_of(r, sums);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = kFirst; k < kLast; ++k)
          to[half * kHalf + 32 * k] = make_float2(sums[k][2 * half] + spoil_, sums[k][2 * half + 1] + spoil_);
    }
    block_barrier(site);
    if (!place_.applies_cell) return;
#pragma unroll 2
    for (int slice = 0; slice < layout_.slices; ++slice, from += row_tiles)
#pragma unroll
      for (int k = kFirst; k < kLast; ++k) totals[k][0] += from[32 * k].x, totals[k][1] += from[32 * k].y;
  }

 protected:
  FUSED_RNN_DEVICE SlicedSums(const Layout& layout, const Place<false>& place, unsigned char* memory)
      : layout_(layout), place_(place), partials_(reinterpret_cast<float2*>(memory) + place.lane) {}

  const Layout& layout_;
  const Place<false>& place_;
  float2* partials_;
  float spoil_ = 0.0f;  // added to all sums: 0, or NaN after giving up
};

}  // namespace fused_rnn
