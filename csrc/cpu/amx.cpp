#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#define FUSED_RNN_AMX
#include "loops.inl.h"

namespace fused_rnn {

const AllLoops& amx_loops() {
  static const AllLoops all{std::get<0>(avx512_loops()), std::get<1>(avx512_loops()), loops<BFloat16>(),
                            std::get<3>(avx512_loops())};
  return all;
}

}  // namespace fused_rnn
