// How the warps that share rows of the batch hand on what the next product reads: tiles of its right factors, in slots
// of their own and in two buffers, of even and of odd steps. All warps call all functions in the same order.
//
//   put       writes values of a thread's elements into a tile; by warps that apply the cell
//   announce  lets the others have what was put since the last time; by the same warps
//   receive   waits until all have announced, and brings slots [kFirst, kLast) of a buffer to where `right` says
//   total     adds a product to totals [kFirst, kLast), where the cell is applied: sums_of(row_tile, sums) adds what a
//             warp's slice of the depth gives to the same places of sums
//
// kRoom: the layout's room where it is known to the compiler, or 0.
//
// What a buffer holds may be replaced two steps later: by then every warp that reads it has announced what it made of
// it, and that has been received by the warp that replaces it.
#pragma once

#include "async_copy.cuh"
#include "between_blocks.cuh"
#include "place.cuh"
#include "tile.cuh"

namespace fused_rnn {

// Through shared memory, in a block that has all units of its rows: a warp has the whole depth.
template <Math kMath, int kSlots, int kSums, int kRoom>
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
  FUSED_RNN_DEVICE void announce(Site) { keep_order(); }
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
    return factors_ + (buffer * kSlots + slot) * slot_stride();
  }

  Element* factors_;
  int room_, place_;
};

// Through global memory, between the blocks of a group that all run at the same time. Every warp that applies the cell
// has a flag, which counts its announcements, and every warp waits for those whose units are its slice of the depth.
template <Math kMath, int kSlots, int kSums, int kRoom>
class BetweenBlocks {
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  static constexpr bool kOneBlock = false;

  FUSED_RNN_DEVICE BetweenBlocks(const Layout& layout, const Mailbox& mailbox, unsigned char* memory,
                                 const Place<false>& place)
      : layout_(layout),
        place_(place),
        stride_(layout.room() * kRightNumbers),
        row_bytes_(layout.tiles() * kTileBytes),
        mail_(mailbox.tiles + place.group * layout.mail_bytes(kSlots)),
        flags_(mailbox.flags + place.group * layout.flags()),
        gave_up_(mailbox.gave_up),
        factors_(reinterpret_cast<Element*>(memory) + place.warp * layout.row_tiles * kSlots * stride_),
        partials_(reinterpret_cast<float2*>(memory + layout.right_factor_bytes(kSlots)) + place.lane) {}

  FUSED_RNN_DEVICE void put(int buffer, int slot, const float (&values)[2]) {
    unsigned char* const tile = mail_ + mail(buffer, slot, place_.row_tile) + place_.tile * kTileBytes;
    reinterpret_cast<typename T::Half*>(tile)[2 * T::right_place(place_.lane) + place_.half] =
        T::half(values[0], values[1]);
  }

  FUSED_RNN_DEVICE void announce(Site site) {
    warp_barrier(site.part(".put"));
    if (place_.lane == 0)
      store_release(flags_ + flag(place_.tile, place_.row_tile) + place_.half, ++announced_, site.part(".release"));
  }

  // A row tile's part of a slot is one piece of memory: all its tiles of the slice. What does not depend on the flags
  // comes before them or after the copies have begun: everybody waits for the time in between.
  template <int kFirst, int kLast>
  FUSED_RNN_DEVICE void receive(int buffer, Site site) {
    ++received_;
    const int lane_at = 16 * place_.lane, bytes = place_.tiles * kTileBytes,
              slot_bytes = layout_.row_tiles * row_bytes_;
    const unsigned char* from = mail_ + mail(buffer, kFirst, 0) + place_.first_tile * kTileBytes + lane_at;
    unsigned char* to = reinterpret_cast<unsigned char*>(factor(0, kFirst)) + lane_at;
    bool all_there = true;
#pragma unroll 1
    for (int i = place_.lane; i < flag(place_.tiles, 0); i += 32)
      all_there &= await(flags_ + flag(place_.first_tile, 0) + i, site.part(".acquire"));
    warp_barrier(site.part(".arrived"));
#pragma unroll 1
    for (int r = 0; r < layout_.row_tiles; ++r) {
#pragma unroll 1
      for (int at = 0; at + lane_at < bytes; at += 16 * 32)
#pragma unroll
        for (int i = 0; i < kLast - kFirst; ++i)
          cp_async16(to + at + i * stride_ * int(sizeof(Element)), from + at + i * slot_bytes);
      from += row_bytes_, to += kSlots * stride_ * int(sizeof(Element));
    }
    cp_async_commit();
    if (ballot(!all_there)) give_up();
    cp_async_wait<0>(site.part(".copy"));
    warp_barrier(site.part(".copied"));
  }

  FUSED_RNN_DEVICE const Element* right(int, int slot, int row_tile) const { return factor(row_tile, slot); }
  FUSED_RNN_DEVICE int slot_stride() const { return stride_; }

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

 private:
  static constexpr int kTileBytes = kRightNumbers * int(sizeof(Element));

  FUSED_RNN_DEVICE int mail(int buffer, int slot, int row_tile) const {
    return ((buffer * kSlots + slot) * layout_.row_tiles + row_tile) * row_bytes_;
  }
  FUSED_RNN_DEVICE int flag(int tile, int row_tile) const { return (tile * layout_.row_tiles + row_tile) * 2; }
  FUSED_RNN_DEVICE Element* factor(int row_tile, int slot) const {
    return factors_ + (row_tile * kSlots + slot) * stride_;
  }

  // What was not received cannot be right: nothing that follows from it looks like a number.
  FUSED_RNN_DEVICE void give_up() {
    spoil_ = bit_cast<float>(0x7fc00000u);
    if (place_.lane == 0) *gave_up_ = 1;
  }

  // Whether that many announcements were made. A block that is not there is waited for for two seconds, once.
  FUSED_RNN_DEVICE bool await(const unsigned* flag, Site site) const {
    constexpr uint64_t kPatience = 2000000000;  // nanoseconds
    constexpr unsigned kPolls = 256;            // between two looks at the clock
    uint64_t since = 0;
    unsigned polls = 0;
    while (int(load_acquire(flag, site) - received_) < 0) {
      if (++polls % kPolls) continue;
      const uint64_t now = nanoseconds();
      if (since == 0) since = now;
      if (now - since > kPatience || spoil_ != 0.0f) return false;
    }
    return true;
  }

  const Layout& layout_;
  const Place<false>& place_;
  int stride_, row_bytes_;
  unsigned char* mail_;
  unsigned* flags_;
  unsigned* gave_up_;
  unsigned announced_ = 0, received_ = 0;
  float spoil_ = 0.0f;  // what is added to all sums; NaN after giving up
  Element* factors_;
  float2* partials_;
};

}  // namespace fused_rnn
