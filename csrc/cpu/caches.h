// The cache size from which the CPU loops choose the sizes of their blocks.
#pragma once

#include <cstdint>

namespace fused_rnn {

// Bytes of a core's second-level cache, read once a process: the environment's FUSED_RNN_L2_KIB (in KiB) if it is set,
// else the system's answer. Throws std::runtime_error if FUSED_RNN_L2_KIB is not a whole number of at least 1.
int64_t second_level_cache();

}  // namespace fused_rnn
