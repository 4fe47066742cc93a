#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_REGISTERS 16
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx2_loops() {
  static const AllLoops all = all_loops();
  return all;
}

}  // namespace fused_rnn
