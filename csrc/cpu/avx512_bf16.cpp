#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx512_bf16_loops() {
  static const AllLoops all{avx512_loops().float32, avx512_loops().float64,   loops<BFloat16>(),
                            avx512_loops().float16, loops<float, BFloat16>(), avx512_vnni_loops().int8};
  return all;
}

}  // namespace fused_rnn
