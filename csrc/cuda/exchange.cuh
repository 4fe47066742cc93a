// An exchange: it moves h, or gradients of gates, from the warps that compute them to the warps that multiply them at
// the next product. These right factors are tiles in slots, in two buffers for even and odd steps. All warps call all
// functions in the same order.
//
//   start     once the weights are loaded and all of shared memory is the exchange's
//   put       writes values of a thread's elements into tiles of adjacent slots; by warps that apply the cell
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

  template <int kCount>
  FUSED_RNN_DEVICE void put(int buffer, int first_slot, const float (&values)[kCount][4]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      *reinterpret_cast<typename T::Fragment*>(slot_of(buffer, first_slot + i) + place_) =
          T::join(T::half(values[i][0], values[i][1]), T::half(values[i][2], values[i][3]));
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
// their sums in shared memory. kMayGiveUp: a warp may have no right factor, and spoils its sums.
template <int kSums, bool kMayGiveUp>
class SlicedSums {
 public:
  static constexpr bool kOneBlock = false;

  template <int kFirst, int kLast, int n, class SumsOf>
  FUSED_RNN_DEVICE void total(int buffer, float (&totals)[n][2], Site site, const SumsOf& sums_of) {
    static_assert(n == kSums, "a place for every sum of a step");
    float2* to = partials_ + own_ + buffer * buffer_;
    const float2* from = partials_ + others_ + buffer * buffer_;
    int r = 0;
#pragma unroll 1
    do {
      float sums[n][4] = {};
      sums_of(r, sums);
      if constexpr (kMayGiveUp)  // one gate is enough to make h NaN
        for (float& sum : sums[kFirst]) sum += spoil_;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int k = kFirst; k < kLast; ++k)
          to[half * kHalf + 32 * k] = make_float2(sums[k][2 * half], sums[k][2 * half + 1]);
      to += 2 * kHalf;
    } while (++r < row_tiles_);
    block_barrier(site);
    if (!place_.applies_cell) return;
    int left = slices_;
#pragma unroll 1
    do {
#pragma unroll
      for (int k = kFirst; k < kLast; ++k) {
        const float2 one = from[32 * k], other = left > 1 ? from[slice_ + 32 * k] : make_float2(0.0f, 0.0f);
        totals[k][0] = totals[k][0] + one.x + other.x;
        totals[k][1] = totals[k][1] + one.y + other.y;
      }
      from += 2 * slice_, left -= 2;
    } while (left > 0);
  }

 protected:
  FUSED_RNN_DEVICE SlicedSums(const Layout& layout, const Place<false>& place, unsigned char* memory)
      : layout_(layout),
        place_(place),
        row_tiles_(kept(layout.row_tiles)),
        slices_(kept(layout.slices)),
        slice_(kept(2 * kHalf * layout.row_tiles)),
        buffer_(kept(layout.warps() * slice_)),
        own_(kept(place.warp * slice_)),
        others_(kept((place.warp - place.slice) * slice_ + (2 * place.row_tile + place.half) * kHalf)),
        partials_(reinterpret_cast<float2*>(memory) + place.lane) {}

  const Layout& layout_;
  const Place<false>& place_;
  float spoil_ = 0.0f;  // NaN after giving up

 private:
  static constexpr int kHalf = kSums * 32;  // pairs of numbers: 8 units and 8 rows of all sums

  int row_tiles_, slices_;
  int slice_, buffer_, own_, others_;  // in pairs of numbers
  float2* partials_;                   // [2 steps, warps, row_tiles, halves, sums, 32]
};

}  // namespace fused_rnn
