// A model of the time of a step. The planner compares plans by it, as none has been measured.
#pragma once

#include "plan.h"

namespace fused_rnn {

// Cycles of a multiprocessor. Figures of an H100 (sources: bench/floors.py); others differ in all of them, and less in
// their ratios.

// Of a step of one group, and of a launch with so many parts before its first step.
double persistent_cycles(const Shape& shape, const Layout& layout);
double starting_cycles(const Layout& layout, int64_t parts);

// Of a step of one layer in one direction.
double stepwise_cycles(const Shape& shape);

}  // namespace fused_rnn
