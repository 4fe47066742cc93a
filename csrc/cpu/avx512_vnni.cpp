#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx512_vnni_loops() {
  static const AllLoops all = [] {
    AllLoops all = avx512_loops();
    all.quantized_int8 = quantized_loops<int8_t>();
    return all;
  }();
  return all;
}

}  // namespace fused_rnn
