// The exchange of the grid tier.
#pragma once

#include "async_copy.cuh"
#include "between_blocks.cuh"
#include "exchange.cuh"

namespace fused_rnn {

// Through global memory, between the blocks of a group that all run at the same time. Every warp that applies the cell
// has a flag, which counts its announcements, and every warp waits for those whose units are its slice of the depth.
template <Math kMath, class Pass, int>
class ThroughMemory : public SlicedSums<Pass::kSums, true> {
  using Base = SlicedSums<Pass::kSums, true>;
  using Base::layout_, Base::place_, Base::spoil_;
  static constexpr int kSlots = Pass::kSlots;
  using T = Tile<kMath>;
  using Element = typename T::Element;

 public:
  FUSED_RNN_DEVICE ThroughMemory(const Layout& layout, const Mailbox& mailbox, unsigned char* memory,
                                 const Place<false>& place)
      : Base(layout, place, memory + layout.right_factor_bytes(kSlots)),
        stride_(layout.room() * kRightNumbers),
        row_bytes_(layout.tiles() * kTileBytes),
        mail_(mailbox.tiles + place.group_of_all(layout) * layout.mail_bytes(kSlots)),
        flags_(mailbox.flags + place.group_of_all(layout) * layout.flags()),
        gave_up_(mailbox.gave_up),
        factors_(reinterpret_cast<Element*>(memory) + place.warp * layout.row_tiles * kSlots * stride_) {}

  FUSED_RNN_DEVICE void start() {}

  template <int kCount>
  FUSED_RNN_DEVICE void put(int buffer, int first_slot, const float (&values)[kCount][2]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      unsigned char* const tile = mail_ + mail(buffer, first_slot + i, place_.row_tile) + place_.tile * kTileBytes;
      reinterpret_cast<typename T::Half*>(tile)[2 * T::right_place(place_.lane) + place_.half] =
          T::half(values[i][0], values[i][1]);
    }
  }

  FUSED_RNN_DEVICE void announce(Site site) {
    warp_barrier(site.part(".put"));
    if (place_.lane == 0)
      store_release(flags_ + flag(place_.tile, place_.row_tile) + place_.half, ++announced_, site.part(".release"));
  }

  // A row tile's part of a slot is one piece of memory: all its tiles of the slice. What does not depend on the flags
  // comes before them or after the copies have begun, since the time in between adds to the latency of the step.
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

  FUSED_RNN_DEVICE void finish(int) {}

  FUSED_RNN_DEVICE const Element* right(int, int slot, int row_tile) const { return factor(row_tile, slot); }
  FUSED_RNN_DEVICE int slot_stride() const { return stride_; }

 private:
  static constexpr int kTileBytes = kRightNumbers * int(sizeof(Element));

  FUSED_RNN_DEVICE int mail(int buffer, int slot, int row_tile) const {
    return ((buffer * kSlots + slot) * layout_.row_tiles + row_tile) * row_bytes_;
  }
  FUSED_RNN_DEVICE int flag(int tile, int row_tile) const { return (tile * layout_.row_tiles + row_tile) * 2; }
  FUSED_RNN_DEVICE Element* factor(int row_tile, int slot) const {
    return factors_ + (row_tile * kSlots + slot) * stride_;
  }

  // All later results become NaN, since a tile is missing.
  FUSED_RNN_DEVICE void give_up() {
    spoil_ = bit_cast<float>(0x7fc00000u);
    if (place_.lane == 0) store_relaxed(gave_up_, 1u);
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

  int stride_, row_bytes_;
  unsigned char* mail_;
  unsigned* flags_;
  unsigned* gave_up_;
  unsigned announced_ = 0, received_ = 0;
  Element* factors_;
};

}  // namespace fused_rnn
