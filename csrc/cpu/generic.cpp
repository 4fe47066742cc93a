#define FUSED_RNN_VECTOR_BYTES 16
#define FUSED_RNN_REGISTERS 15  // of 16: one holds a product before it is added
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& generic_loops() {
  static const AllLoops all = all_loops();
  return all;
}

}  // namespace fused_rnn
