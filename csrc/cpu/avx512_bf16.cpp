#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx512_bf16_loops() {
  static const AllLoops all = [] {
    AllLoops all = avx512_vnni_loops();
    all.bfloat16 = loops<BFloat16>();
    all.reduced = loops<float, BFloat16>();
    return all;
  }();
  return all;
}

}  // namespace fused_rnn
