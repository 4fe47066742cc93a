#include "cost.h"

#include <algorithm>

namespace fused_rnn {
namespace {

constexpr double kClock = 1850;            // cycles of a microsecond
constexpr double kMeeting = 0.9 * kClock;  // a flag's way to other blocks, and that of what it stands for, through L2
constexpr double kBarrier = 60;            // of a block
constexpr double kLaunch = 3.3 * kClock;   // of a kernel or a library matmul, from eager PyTorch

// A dependent product of tiles after the one before it, and how long one occupies its scheduler.
constexpr double kChain = 33, kIssue = 8, kFloat32Issue = 80;
constexpr double kPartial = 8;  // of one warp, to read a slice's sums
constexpr double kShared = 128,
                 kTakenIn = 64;  // bytes a cycle of a multiprocessor: its shared memory, what it reads from L2
constexpr double kL2 = 5400;     // bytes a cycle of all
constexpr double kCell = 110;    // for each gate, exp and reciprocals of a thread's elements, and what follows

double multiplications_a_cycle(Math math) {  // of all multiprocessors, in a large matmul
  switch (math) {
    case Math::kFloat32: return 14000;
    case Math::kTf32: return 107000;
    default: return 214000;
  }
}

double rounds(int64_t count, int64_t each) { return double((count + each - 1) / each); }

}  // namespace

double persistent_cycles(const Shape& shape, const Layout& layout, int groups) {
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
    const double partials = layout.slices * sums * kPartial;
    step += kMeeting * (1 + resets) + taken_in + partials;
  }
  return step * rounds(shape.B, int64_t(groups) * layout.rows());
}

double stepwise_cycles(const Shape& shape) {
  const double weights = double(shape.cell.gates) * shape.H * shape.H, launches = 2 * (1 + shape.cell.resets_before);
  return launches * kLaunch + weights * shape.B / multiplications_a_cycle(shape.math) +
         weights * element_bytes(shape.math) / kL2;
}

}  // namespace fused_rnn
