#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_REGISTERS 16
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx_vnni_loops() {
  static const AllLoops all = with_own_int8(avx2_loops());
  return all;
}

}  // namespace fused_rnn
