#define FUSED_RNN_VECTOR_BYTES 16
#define FUSED_RNN_REGISTERS 15  // of 16: one holds a product before it is added
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& generic_loops() {
  static const AllLoops all{
      loops<float>(),           loops<double>(), loops<BFloat16>(), loops<Float16>(), {}, quantized_loops<Widened>(),
      quantized_loops<int8_t>()};
  return all;
}

}  // namespace fused_rnn
