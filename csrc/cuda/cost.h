// A model of the time of a step. The planner compares plans by it, as none has been measured.
#pragma once

#include "plan.h"

namespace fused_rnn {

// Cycles of a multiprocessor. Figures of an H100 (sources: bench/floors.py); others differ in all of them, and less in
// their ratios.
double persistent_cycles(const Shape& shape, const Layout& layout, int groups);
double stepwise_cycles(const Shape& shape);

}  // namespace fused_rnn
