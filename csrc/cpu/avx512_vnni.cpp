#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx512_vnni_loops() {
  static const AllLoops all = with_own_int8(avx512_loops());
  return all;
}

}  // namespace fused_rnn
