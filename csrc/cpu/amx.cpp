#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#define FUSED_RNN_AMX
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& amx_loops() {
  static const AllLoops all = [] {
    AllLoops all = avx512_vnni_loops();
    all.bfloat16 = loops<BFloat16>();
    all.reduced = loops<float, BFloat16>();
    all.quantized_int8 = quantized_loops<int8_t>();
    return all;
  }();
  return all;
}

}  // namespace fused_rnn
