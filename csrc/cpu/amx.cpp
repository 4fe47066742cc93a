#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#define FUSED_RNN_AMX
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& amx_loops() {
  static const AllLoops all = with_own_int8(with_own_bfloat16(avx512_vnni_loops()));
  return all;
}

}  // namespace fused_rnn
