// The division of a layer among blocks and warps of a persistent kernel, and its on-chip memory. The planner counts its
// bytes, and the kernels index it.
//
// Hidden units come in tiles of 16 and rows of the batch in tiles of 8: a warp's product has 16 x 8 sums for each gate.
// The depth of a product is hidden units, too, in the same tiles. H is padded to whole tiles with zeros.
#pragma once

#include <cstdint>

#include "../inline.h"

namespace fused_rnn {

// Number type of the factors of a product. Sums are always float32.
enum class Math { kFloat32, kTf32, kBFloat16, kFloat16 };

// kBlock: weight_hh stays on chip for all steps, in one block, which has some rows of the batch to itself.
// kCluster, kGrid: the same, divided among the blocks of a group, which meet at each step: in a cluster through each
// other's shared memory, otherwise through global memory.
// kStepwise: at each step one library matmul and one kernel for the cell.
enum class Tier { kBlock, kCluster, kGrid, kStepwise };

// The compute capability from which on the kernels of a tier can run.
constexpr FUSED_RNN_INLINE int oldest_capability(Tier tier) {
  return tier == Tier::kCluster ? 90 : tier == Tier::kGrid ? 80 : 75;
}

constexpr int kUnitTile = 16, kBatchTile = 8;
constexpr int kClusterBlocks = 2;  // a cluster has a multiple of these

constexpr int element_bytes(Math math) { return math == Math::kFloat32 || math == Math::kTf32 ? 4 : 2; }
// Tiles of the depth that a warp can keep in registers: 32 registers a gate, and in the backward of several blocks,
// which needs more for itself, 96 of all gates. Without tensor cores none.
constexpr int most_in_registers(Math math, int gates, bool backward, bool one_block) {
  if (math == Math::kFloat32) return 0;
  const int registers = 2 * element_bytes(math), most = 32 / registers;  // registers: of a tile and gate
  const int of_several = 96 / (registers * gates);
  return backward && !one_block && of_several < most ? of_several : most;
}
// Maximum number of warps of a block, by the registers of a multiprocessor.
constexpr int most_warps(Math math, bool in_registers) { return in_registers || element_bytes(math) == 4 ? 8 : 12; }

// The blocks of a group share the rows of the batch that the group takes through all steps, and each owns some units.
// Groups never meet. A block by itself is a group of one, and its warps are its unit tiles.
struct Layout {
  int H, gates, element;  // element: bytes of a number in a product
  int in_registers;       // tiles of the depth that a warp keeps in registers; the others are in shared memory
  int blocks;             // of a group
  bool cluster;           // the group is a cluster
  int unit_tiles;         // of a block, at most: they are spread evenly, so that every block has one
  int slices;             // of the depth; the warps of a unit tile multiply one each, and their sums are added up
  int row_tiles;          // of a group; of several blocks, two warps of a unit tile apply the cell to each, to 8 units

  FUSED_RNN_INLINE bool is_one_block() const { return blocks == 1; }
  FUSED_RNN_INLINE int tiles() const { return ceil_div(H, kUnitTile); }
  // The first unit tile of a block of the group, and past the last block the number of tiles.
  FUSED_RNN_INLINE int first_tile(int block) const { return block * tiles() / blocks; }
  FUSED_RNN_INLINE int depth() const { return ceil_div(tiles(), slices); }  // tiles of a slice
  FUSED_RNN_INLINE int warps() const { return unit_tiles * slices; }
  FUSED_RNN_INLINE int rows() const { return row_tiles * kBatchTile; }
  FUSED_RNN_INLINE int in_shared() const { return depth() > in_registers ? depth() - in_registers : 0; }

  // Bytes of a tile of the left factor, weight_hh, and of the right factor, which warps exchange.
  FUSED_RNN_INLINE int left_bytes() const { return kUnitTile * kUnitTile * element; }
  FUSED_RNN_INLINE int right_bytes() const { return kUnitTile * kBatchTile * element; }

  // Parts of shared memory. weight_hh: [warps, in_shared, gates, left tile].
  FUSED_RNN_INLINE int64_t weight_bytes() const { return int64_t(warps()) * in_shared() * gates * left_bytes(); }
  // Where each warp puts a gate on its way into registers; afterwards it is the exchange's.
  FUSED_RNN_INLINE int64_t loading_bytes() const { return int64_t(warps()) * in_registers * left_bytes(); }
  // Biases of x and of h, float32: [2, gates, units of the block]; the forward's only.
  FUSED_RNN_INLINE int64_t bias_bytes() const { return int64_t(2) * gates * unit_tiles * kUnitTile * 4; }
  // Tiles of a warp's right factor: those past the depth that registers have room for are read, too, and not used.
  FUSED_RNN_INLINE int room() const { return depth() > in_registers ? depth() : in_registers; }
  // One block: [2 steps, slots, room]; a cluster: [2 steps, slots, row_tiles, slices, room]; other blocks: [warps,
  // row_tiles, slots, room].
  FUSED_RNN_INLINE int64_t right_factor_bytes(int slots) const {
    const int copies = is_one_block() ? 2 : (cluster ? 2 * slices : warps()) * row_tiles;
    return int64_t(copies) * slots * room() * right_bytes();
  }
  // Sums of the slices, float32: [2 steps, warps, row_tiles, halves, sums, 8 x 8]; of several blocks only.
  FUSED_RNN_INLINE int64_t partial_bytes(int sums) const {
    return is_one_block() ? 0 : int64_t(2) * warps() * row_tiles * sums * kUnitTile * kBatchTile * 4;
  }
  // mbarriers of a cluster: [2 steps, meetings of a step, slices].
  FUSED_RNN_INLINE int64_t barrier_bytes(bool reset_before) const {
    return cluster ? int64_t(2) * (1 + reset_before) * slices * 8 : 0;
  }

  // Right factors at a step: h and r * h, or in the backward the gradients of all gates.
  static constexpr FUSED_RNN_INLINE int slots(bool backward, int gates, bool reset_before) {
    return backward ? gates : 1 + reset_before;
  }
  // Sums of a slice of the depth: one for each gate, or in the backward one for all gates of a product.
  static constexpr FUSED_RNN_INLINE int sums(bool backward, int gates, bool reset_before) {
    return backward ? 1 + reset_before : gates;
  }
  FUSED_RNN_INLINE int64_t exchange_bytes(bool backward, bool reset_before) const {
    const int64_t bytes = right_factor_bytes(slots(backward, gates, reset_before)) +
                          partial_bytes(sums(backward, gates, reset_before)) + barrier_bytes(reset_before);
    return bytes > loading_bytes() ? bytes : loading_bytes();
  }
  // In the backward hx and cx have a place for each of the elements that a thread may have.
  FUSED_RNN_INLINE int64_t shared_bytes(bool backward, bool reset_before, bool cell_state) const {
    const int64_t initial = int64_t(warps()) * kUnitTile * kBatchTile * element * (1 + cell_state);
    return weight_bytes() + exchange_bytes(backward, reset_before) + (backward ? initial : bias_bytes());
  }

  // Of several blocks, in global memory and for each group: tiles of right factors [2 steps, slots, row_tiles, tiles],
  // and a flag for each of [tiles, row_tiles, halves].
  FUSED_RNN_INLINE int64_t mail_bytes(int slots) const {
    return int64_t(2) * slots * row_tiles * tiles() * right_bytes();
  }
  FUSED_RNN_INLINE int64_t flags() const { return int64_t(2) * row_tiles * tiles(); }
};

}  // namespace fused_rnn
