// A model of the time of a call. The planner compares plans by it, as none has been measured.
#pragma once

#include "plan.h"

namespace fused_rnn {

// Cycles of a multiprocessor, without the matmuls. Figures of an H100 (sources: bench/floors.py); others differ in all
// of them, and less in their ratios.
double microseconds(double cycles);

// Persistent kernels: one step of one group.
double persistent_cycles(const Shape& shape, const Layout& layout);

// A launch with `parts` parts, from the host's first call to the kernel's first step.
double starting_cycles(const Layout& layout, int64_t parts);

// The stepwise tier: one step of one layer in one direction.
double stepwise_cycles(const Shape& shape);

}  // namespace fused_rnn
