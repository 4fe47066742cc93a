#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx512_loops() {
  static const AllLoops all{loops<float>(),
                            loops<double>(),
                            loops<BFloat16>(),
                            loops<Float16>(),
                            {},
                            quantized_loops<Widened>(),
                            avx2_loops().quantized_int8};
  return all;
}

}  // namespace fused_rnn
