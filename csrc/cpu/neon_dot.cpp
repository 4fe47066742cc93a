#define FUSED_RNN_VECTOR_BYTES 16
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& neon_dot_loops() {
  static const AllLoops all = with_own_int8(neon_loops());
  return all;
}

}  // namespace fused_rnn
