// The exchange of the cluster tier.
#pragma once

#include "async_copy.cuh"
#include "between_blocks.cuh"
#include "exchange.cuh"

namespace fused_rnn {

// Through the shared memory of a cluster, which is the group: every warp that applies the cell stores its tile into all
// blocks, and each block counts the bytes of every slice of the depth on an mbarrier, whose warps wait for it. A phase
// is a meeting; its only arrival says how many bytes belong to it.
template <Math kMath, class Pass, int>
class ThroughCluster : public SlicedSums<Pass::kSums> {
  using Base = SlicedSums<Pass::kSums>;
  using Base::layout_, Base::place_;
  using T = Tile<kMath>;
  using Element = typename T::Element;
  static constexpr int kSlots = Pass::kSlots, kMeetings = Pass::kMeetings;

 public:
  FUSED_RNN_DEVICE ThroughCluster(const Layout& layout, const Mailbox&, unsigned char* memory,
                                  const Place<false>& place)
      : Base(layout, place, memory + layout.right_factor_bytes(kSlots)),
        slice_(layout.room() * kRightNumbers),
        row_(layout.slices * slice_),
        stride_(layout.row_tiles * row_),
        factors_(reinterpret_cast<Element*>(memory)),
        barriers_(reinterpret_cast<uint64_t*>(memory + layout.right_factor_bytes(kSlots) +
                                              layout.partial_bytes(Pass::kSums))) {
    const int depth = layout.depth();
    own_slice_ = place.tile / depth;
    own_place_ = place.row_tile * row_ + own_slice_ * slice_ + place.tile % depth * kRightNumbers +
                 T::right_place(place.lane) * kFragmentNumbers + place.half * (kFragmentNumbers / 2);
  }

  FUSED_RNN_DEVICE void start() {
    if (threadIdx.x == 0)
      for (int i = 0; i < 2 * kMeetings * layout_.slices; ++i) mbarrier_init(barriers_ + i, 1);
    block_barrier("cluster.initialised");
    if (expects())
      for (int buffer = 0; buffer < 2; ++buffer)
        for (int meeting = 0; meeting < kMeetings; ++meeting) expect(buffer, meeting);
    cluster_barrier("cluster.ready");
  }

  FUSED_RNN_DEVICE void put(int buffer, int slot, const float (&values)[2]) {
    Element* const to = factors_ + (buffer * kSlots + slot) * stride_ + own_place_;
    uint64_t* const barrier = this->barrier(buffer, meeting_of(slot), own_slice_);
    const typename T::Half half = T::half(values[0], values[1]);
#pragma unroll 4
    for (int rank = 0; rank < layout_.blocks; ++rank)
      store_async_cluster(reinterpret_cast<typename T::Half*>(to), unsigned(rank), half, barrier);
  }

  FUSED_RNN_DEVICE void announce(Site) { keep_order(); }

  template <int kFirst, int kLast>
  FUSED_RNN_DEVICE void receive(int buffer, Site site) {
    constexpr int kMeeting = meeting_of(kFirst);
    const int phase = buffer * kMeetings + kMeeting;
    mbarrier_wait(barrier(buffer, kMeeting, place_.slice), phases_ >> phase & 1, site);
    phases_ ^= 1u << phase;
    if (expects()) expect(buffer, kMeeting);
  }

  // A block may end only when all stores into its shared memory have arrived.
  FUSED_RNN_DEVICE void finish(int buffer) { receive<0, 1>(buffer, "cluster.last"); }

  FUSED_RNN_DEVICE const Element* right(int buffer, int slot, int row_tile) const {
    return factors_ + (buffer * kSlots + slot) * stride_ + row_tile * row_ + place_.slice * slice_;
  }
  FUSED_RNN_DEVICE int slot_stride() const { return stride_; }

 private:
  // With the reset before the matmul the last slot has a meeting of its own, the second one.
  static constexpr FUSED_RNN_DEVICE int meeting_of(int slot) { return kMeetings > 1 && slot == kSlots - 1; }
  static constexpr FUSED_RNN_DEVICE int slots_of(int meeting) { return meeting ? 1 : kSlots - (kMeetings > 1); }
  FUSED_RNN_DEVICE uint64_t* barrier(int buffer, int meeting, int slice) const {
    return barriers_ + (buffer * kMeetings + meeting) * layout_.slices + slice;
  }

  // One thread for each slice says how many bytes come in the next phase of its barrier.
  FUSED_RNN_DEVICE bool expects() const { return place_.warp < layout_.slices && place_.lane == 0; }
  FUSED_RNN_DEVICE void expect(int buffer, int meeting) {
    const int tiles = place_.tiles * layout_.row_tiles * slots_of(meeting);
    mbarrier_expect(barrier(buffer, meeting, place_.slice), unsigned(tiles * kRightNumbers * int(sizeof(Element))));
  }

  int slice_, row_, stride_, own_slice_, own_place_;  // in numbers
  Element* factors_;                                  // [2 steps, slots, row_tiles, slices, room]
  uint64_t* barriers_;                                // [2 steps, meetings, slices]
  unsigned phases_ = 0;                               // a bit for each of [2 steps, meetings]
};

}  // namespace fused_rnn
