// The loops of float32 and bfloat16 in vectors of 64 bytes and with 32 registers, as AVX-512 has them, for a processor
// that lacks it: the compiler builds the vectors from narrower ones. With FUSED_RNN_PAIRS or FUSED_RNN_AMX, those of
// bfloat16 and of float32 in reduced precision, in pairs as AVX512-BF16 has them or in emulated tiles; with
// FUSED_RNN_UNSIGNED, int8 weights as VNNI takes them.
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/loops.inl.h"

namespace fused_rnn {

static const AllLoops& wide_loops() {
#if defined(FUSED_RNN_PAIRS) || defined(FUSED_RNN_AMX)
  static const AllLoops all{{}, {}, loops<BFloat16>(), {}, loops<float, BFloat16>(), {}};
#else
  static const AllLoops all{loops<float>(), {}, loops<BFloat16>(), {}, {}, int8_loops(AllCells{})};
#endif
  return all;
}

const InstructionSet& instruction_set() {
  static const InstructionSet set{"wide", [] { return true; }, wide_loops};
  return set;
}

}  // namespace fused_rnn
