// From a shape and a device to a plan: which kernels run a layer, and how they are launched. Plain arithmetic on plain
// data, no CUDA: a plan can be printed and tested for a GPU that is not here.
#pragma once

#include <cstdint>
#include <string>

#include "../cell_traits.h"
#include "layout.h"

namespace fused_rnn {

struct Device {
  std::string name;
  int capability;    // 10 * major + minor
  int sm_count;      // of this device or this slice of it
  int shared_bytes;  // that one block may have
  // gates_x of a chunk of steps: small enough for a large L2 cache, large enough that a launch is nothing beside it.
  int64_t chunk_bytes = int64_t(32) << 20;
  bool cooperative = true;  // it can start the blocks of a launch all at once, or not at all
};

// The datasheets' devices, for plans without the device. Throws std::runtime_error for a name that is not among them.
Device known_device(const std::string& name);

struct Shape {
  const CellTraits& cell;
  Math math;
  int64_t T, B, H;
  int64_t L, D;  // layers and directions of the call
  bool backward;
  int64_t projection = 0;  // numbers of h, if it is projected
};

// "float32", "tf32", "bfloat16" or "float16". Throws std::runtime_error for another name.
Math math_named(const std::string& name);

struct Plan {
  Tier tier;
  std::string reason;  // why no better tier, a sentence, or empty
  double cycles;       // of the call, by the model of cost.h
  int chunk;           // steps whose gates_x are computed at once
  int together;        // directions of a layer, or stacked layers in one direction, in one launch; 1 of kStepwise
  Layout layout;       // not of kStepwise, nor what follows
  int groups;  // of blocks, for each of these; a group has layout.rows() rows of the batch, and launches take the batch
               // one after the other
  int64_t shared_bytes;

  int64_t rows() const { return int64_t(groups) * layout.rows(); }  // of a launch
};

// FUSED_RNN_TIER=block, =cluster, =grid or =stepwise forces a tier, for measurements. "grid 2x4x1": 2 unit tiles in a
// block, 4 slices of the depth, 1 row tile in a group. "block together 2": at most two layers or directions side by
// side. Throws std::runtime_error for anything else, where the forced tier cannot run the shape, and where no plan can.
Plan make_plan(const Shape& shape, const Device& device);

std::string to_string(const Plan& plan, const Shape& shape);

// Why no plan can run the math on the device, a sentence, or an empty string.
std::string why_not(Math math, int capability);

// Why no plan can run the shape: the kernels count the numbers of one step in 32 bits.
std::string why_not(const Shape& shape);

}  // namespace fused_rnn
