#define FUSED_RNN_VECTOR_BYTES 16
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& neon_loops() {
  static const AllLoops all = all_loops();
  return all;
}

}  // namespace fused_rnn
