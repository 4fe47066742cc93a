#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_REGISTERS 16
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx_vnni_loops() {
  static const AllLoops all = [] {
    AllLoops all = avx2_loops();
    all.quantized_int8 = quantized_loops<int8_t>();
    return all;
  }();
  return all;
}

}  // namespace fused_rnn
