#include "cost.h"

#include <algorithm>

namespace fused_rnn {
namespace {

constexpr double kClock = 1850;  // cycles of a microsecond

// Latencies of a step: of a flag and then a tile through L2 to other blocks; of a tile into the shared memory of other
// blocks, with the instructions around it; of a barrier of a block; of a kernel or library matmul launched from Python.
constexpr double kMeeting = 1.1 * kClock, kPush = 0.45 * kClock, kBarrier = 60, kLaunch = 3.3 * kClock;

// A product of tiles after the one that it adds to, and how long one occupies its scheduler.
constexpr double kChain = 33, kIssue = 8, kFloat32Issue = 80;

// Of one warp: to store a tile into one block, to read the sums of a slice, and for each gate to apply the cell.
constexpr double kPushed = 8, kPartial = 8, kCell = 110;

// Bytes a cycle: of one multiprocessor, from its shared memory and from L2; of all of them, from L2.
constexpr double kShared = 128, kTakenIn = 64, kL2 = 5400;

double multiplications_a_cycle(Math math) {  // of all multiprocessors, in a large matmul
  switch (math) {
    case Math::kFloat32: return 14000;
    case Math::kTf32: return 107000;
    default: return 214000;
  }
}

}  // namespace

double persistent_cycles(const Shape& shape, const Layout& layout) {
  const int G = shape.cell.gates, element = element_bytes(shape.math);
  const bool resets = shape.cell.resets_before;
  const double schedulers = 4, warps = layout.warps(), depth = layout.depth(), rows = layout.row_tiles;
  const double issue = (shape.math == Math::kFloat32 ? kFloat32Issue : element == 4 ? 2 * kIssue : kIssue) * G;
  const double product = depth * std::max(kChain * (element == 4 ? 2 : 1), issue * std::max(1.0, warps / schedulers));
  const double from_shared = warps * layout.in_shared() * G * layout.left_bytes() / kShared;
  double step = rows * std::max(product, from_shared) + kCell * G + kBarrier * (1 + resets);
  if (!layout.is_one_block()) {
    const int slots = Layout::slots(shape.backward, G, resets), sums = Layout::sums(shape.backward, G, resets);
    const double taken_in = warps * rows * depth * slots * layout.right_bytes() / kTakenIn;
    const double pushed = layout.blocks * slots * kPushed;
    const double partials = layout.slices * sums * kPartial;
    step += layout.cluster ? kPush * (1 + resets) + pushed : kMeeting * (1 + resets) + taken_in;
    step += partials;
  }
  return step;
}

// The launch itself, a matmul for each part that projects its steps, and weight_hh from L2.
double starting_cycles(const Layout& layout, int64_t parts) {
  const double weights = double(layout.gates) * layout.warps() * layout.depth() * layout.left_bytes();
  return double(1 + parts) * kLaunch + weights / kTakenIn;
}

double stepwise_cycles(const Shape& shape) {
  const double weights = double(shape.cell.gates) * shape.H * shape.H, launches = 2 * (1 + shape.cell.resets_before);
  return launches * kLaunch + weights * shape.B / multiplications_a_cycle(shape.math) +
         weights * element_bytes(shape.math) / kL2;
}

}  // namespace fused_rnn
