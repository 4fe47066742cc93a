#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_REGISTERS 16
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& avx2_loops() {
  static const AllLoops all{
      loops<float>(),           loops<double>(), loops<BFloat16>(), loops<Float16>(), {}, quantized_loops<Widened>(),
      quantized_loops<int8_t>()};
  return all;
}

}  // namespace fused_rnn
