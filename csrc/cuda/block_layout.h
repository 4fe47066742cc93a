// How the block tier lays a layer out on chip: what the plan counts and the kernels index.
//
// Units come in tiles of 16, one a warp: the rows of a warp's product. Rows of the batch come in tiles of 8: its
// columns. H is padded to whole tiles with zeros. Rows in shared memory are 16 bytes longer than that, so that eight of
// them start in different banks.
#pragma once

#include <cstdint>

#include "../inline.h"

namespace fused_rnn {

// What a product multiplies; sums are float32 always.
enum class Math { kFloat32, kTf32, kBFloat16, kFloat16 };

constexpr int kUnitTile = 16, kBatchTile = 8;
constexpr int kResidentDepth = 8;  // tiles of the depth of a product that a thread can keep in registers

constexpr int element_bytes(Math math) { return math == Math::kFloat32 || math == Math::kTf32 ? 4 : 2; }
// Warps of a block, at the most: what its registers leave room for, and as many as there is shared memory for.
constexpr int most_warps(Math math, bool resident) { return resident || element_bytes(math) == 4 ? 8 : 12; }
// How far one tile's product sums; 0 where products are not tiles of a matrix unit.
constexpr int tile_depth(Math math) { return math == Math::kFloat32 ? 0 : math == Math::kTf32 ? 8 : 16; }

struct BlockLayout {
  int H, gates, element;  // element: bytes
  bool resident;

  FUSED_RNN_INLINE int warps() const { return (H + kUnitTile - 1) / kUnitTile; }
  FUSED_RNN_INLINE int padded() const { return warps() * kUnitTile; }
  FUSED_RNN_INLINE int stride() const { return padded() + 16 / element; }  // of a row, in elements
  // weight_hh: [warps, gates, kUnitTile, stride], in the backward each gate's part transposed; if it is resident, room
  // for one gate on the way into registers
  FUSED_RNN_INLINE int64_t weight_bytes() const {
    return int64_t(resident ? 1 : gates) * padded() * stride() * element;
  }
  // Biases of x and of h for each row of weight_hh, float32; the forward's only
  FUSED_RNN_INLINE int64_t bias_bytes() const { return int64_t(gates) * padded() * 8; }
  // One right factor: [kBatchTile, factor_stride]. Its tiles, of 32 bytes, are loaded two at a time; if weight_hh is
  // resident, all that a thread can keep, so that the code has no branch and no multiplication.
  FUSED_RNN_INLINE int factor_stride() const {
    const int bytes = resident ? kResidentDepth * 32 : (padded() * element + 63) / 64 * 64;
    return (bytes + 16) / element;
  }
  FUSED_RNN_INLINE int64_t factor_bytes() const { return int64_t(kBatchTile) * factor_stride() * element; }
  // The forward keeps h of two steps and r * h, the backward the gradients of all gates of two steps, and cx in
  // float32.
  FUSED_RNN_INLINE int64_t shared_bytes(bool backward, bool reset_before, bool cell_state) const {
    const int64_t cx = cell_state ? int64_t(kBatchTile) * padded() * 4 : 0;
    return weight_bytes() +
           (backward ? 2 * gates * factor_bytes() + cx : bias_bytes() + (reset_before ? 3 : 2) * factor_bytes());
  }
};

}  // namespace fused_rnn
