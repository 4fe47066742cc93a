// What the loops have to know about this processor's caches.
#pragma once

#include <cstdint>

namespace fused_rnn {

// Bytes of a core's second-level cache, or what FUSED_RNN_L2_KIB says in KiB; asked for once. Throws std::runtime_error
// if that is not a whole number of at least 1.
int64_t second_level_cache();

}  // namespace fused_rnn
