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
class ThroughCluster : public SlicedSums<Pass::kSums, false> {
  using Base = SlicedSums<Pass::kSums, false>;
  using Base::layout_, Base::place_;
  using T = Tile<kMath>;
  using Element = typename T::Element;
  static constexpr int kSlots = Pass::kSlots, kMeetings = Pass::kMeetings;

 public:
  FUSED_RNN_DEVICE ThroughCluster(const Layout& layout, const Mailbox&, unsigned char* memory,
                                  const Place<false>& place)
      : Base(layout, place, memory + layout.right_factor_bytes(kSlots)),
        blocks_(kept(layout.blocks)),
        row_(kept(layout.slices * layout.room() * kRightNumbers)),
        stride_(kept(layout.row_tiles * row_)),
        right_(kept(place.slice * layout.room() * kRightNumbers)),
        slot_bytes_(kept(place.tiles * layout.row_tiles * kRightNumbers * int(sizeof(Element)))),
        factors_(reinterpret_cast<Element*>(memory)),
        barriers_(reinterpret_cast<uint64_t*>(memory + layout.right_factor_bytes(kSlots) +
                                              layout.partial_bytes(Pass::kSums))) {
    const int depth = layout.depth();
    own_slice_ = place.tile / depth;
    own_place_ = place.row_tile * row_ + (own_slice_ * layout.room() + place.tile % depth) * kRightNumbers +
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

  template <int kCount>
  FUSED_RNN_DEVICE void put(int buffer, int first_slot, const float (&values)[kCount][2]) {
    Element* const to = factors_ + (buffer * kSlots + first_slot) * stride_ + own_place_;
    uint64_t* const barrier = this->barrier(buffer, meeting_of(first_slot), own_slice_);
    typename T::Half halves[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) halves[i] = T::half(values[i][0], values[i][1]);
    int rank = 0;
#pragma unroll 1
    do {
#pragma unroll
      for (int next = 0; next < kClusterBlocks; ++next, ++rank)
#pragma unroll
        for (int i = 0; i < kCount; ++i)
          store_async_cluster(reinterpret_cast<typename T::Half*>(to + i * stride_), unsigned(rank), halves[i],
                              barrier);
    } while (rank < blocks_);
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
    return factors_ + right_ + (buffer * kSlots + slot) * stride_ + row_tile * row_;
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
    mbarrier_expect(barrier(buffer, meeting, place_.slice), unsigned(slot_bytes_ * slots_of(meeting)));
  }

  int blocks_;
  int row_, stride_, right_, own_place_;  // in numbers
  int slot_bytes_;                        // of a slice
  int own_slice_;
  Element* factors_;     // [2 steps, slots, row_tiles, slices, room]
  uint64_t* barriers_;   // [2 steps, meetings, slices]
  unsigned phases_ = 0;  // a bit for each of [2 steps, meetings]
};

}  // namespace fused_rnn
