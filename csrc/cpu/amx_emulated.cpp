// The loops of amx.cpp without its instructions, thousands of times slower: only in builds for the tests.
#ifdef FUSED_RNN_POISON
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#define FUSED_RNN_AMX
#define FUSED_RNN_AMX_EMULATED
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& amx_emulated_loops() {
  static const AllLoops all = with_own_int8(with_own_bfloat16(generic_loops()));
  return all;
}

}  // namespace fused_rnn
#endif
