#include "cost.h"

#include <algorithm>

namespace fused_rnn {
namespace {

constexpr double kClock = 1850;  // cycles of a microsecond

// Cycles of a step of a persistent kernel, fitted to what tests/cycles.py finds in the machine code of 528 kernels and
// divisions: off by 12 percent in one block, by 7 in a cluster and by 3 in a grid (root mean square).
constexpr double kStep = 230;  // whatever else

// Each meeting, with the way to other blocks: in a block, a cluster and a grid.
constexpr double kBarrier = 130, kPush = 420, kMeeting = 1530;

// Of a product, for each tile of the depth: the latency of one that adds to the one before; for each gate, the time on
// the tensor cores of a scheduler; right and left factors of 16 bits from shared memory, and either factor without
// tensor cores. A tile whose left factors are in shared memory is a turn of a loop, and so is a tile of rows.
constexpr double kChain = 21, kIssue = 6, kRight = 4, kLeft = 16, kFloat32 = 128, kTurn = 51, kRow = 70;

// Of a warp that applies the cell, for two elements of each thread: a gate of the cell, in the forward and the
// backward; transposing 32-bit numbers; adding up a slice, and each of its sums; storing into a block.
constexpr double kForwardGate = 47, kBackwardGate = 35, kWords = 28, kSlice = 22, kSum = 2, kStore = 4;

// Of a warp of a grid: copies of 512 bytes, for each right factor and once; looking at more flags than it has lanes.
constexpr double kCopied = 5, kCopy = 48, kMoreFlags = 254;

// A kernel or library matmul launched from Python.
constexpr double kLaunch = 3.3 * kClock;

// Bytes a cycle from L2: of one multiprocessor, and of all.
constexpr double kTakenIn = 64, kL2 = 5400;

double multiplications_a_cycle(Math math) {  // of all multiprocessors, in a large matmul
  switch (math) {
    case Math::kFloat32: return 14000;
    case Math::kTf32: return 107000;
    default: return 214000;
  }
}

}  // namespace

double microseconds(double cycles) { return cycles / kClock; }

double persistent_cycles(const Shape& shape, const Layout& layout) {
  const bool one_block = layout.is_one_block(), resets = shape.cell.resets_before;
  const int G = shape.cell.gates, words = element_bytes(shape.math) / 2, meetings = 1 + resets, schedulers = 4;
  const int slots = Layout::slots(shape.backward, G, resets), sums = Layout::sums(shape.backward, G, resets);
  const int rows = layout.row_tiles, in_registers = layout.in_registers, in_shared = layout.in_shared();
  // Warps of a scheduler, and those that apply the cell.
  const int warps = ceil_div(layout.warps(), schedulers);
  const int applying = one_block ? warps : ceil_div(2 * rows * layout.unit_tiles, schedulers);

  const double right = kRight * slots * words * warps, left = kLeft * G * words * warps;
  const double loaded = shape.math == Math::kFloat32 ? kFloat32 * (G + slots) * warps : left + right;
  double product = in_registers * (std::max(kChain * words * meetings, kIssue * words * G * warps) + right);
  product += in_shared * (kTurn * meetings + loaded);
  if (!one_block) product += kRow * meetings;

  double cell = (shape.backward ? kBackwardGate : kForwardGate) * G + kWords * (words - 1) * slots;
  if (one_block)
    cell *= 2;  // four elements
  else
    cell += layout.slices * (kSlice * meetings + kSum * sums);
  if (layout.cluster) cell += kStore * slots * layout.blocks;

  double step = kStep + rows * product + applying * cell;
  step += meetings * (one_block ? kBarrier : layout.cluster ? kPush : kMeeting);
  if (!one_block && !layout.cluster) {
    const int depth = layout.depth();
    step += rows * ceil_div(depth * layout.right_bytes(), 512) * (kCopy * meetings + kCopied * slots);
    step += meetings * kMoreFlags * (ceil_div(2 * depth * rows, 32) - 1);
  }
  return step;
}

// The launch itself, a matmul for each part that projects its steps, and weight_hh from L2.
double starting_cycles(const Layout& layout, int64_t parts) {
  const double weights = double(layout.gates) * layout.warps() * layout.depth() * layout.left_bytes();
  return double(1 + parts) * kLaunch + weights / kTakenIn;
}

double stepwise_cycles(const Shape& shape) {
  const int64_t P = shape.projection ? shape.projection : shape.H;
  const bool is_second = shape.cell.resets_before || shape.projection;  // a second matmul
  const double weights = double(shape.cell.gates * P + shape.projection) * shape.H, launches = 2 * (1 + is_second);
  return launches * kLaunch + weights * shape.B / multiplications_a_cycle(shape.math) +
         weights * element_bytes(shape.math) / kL2;
}

}  // namespace fused_rnn
