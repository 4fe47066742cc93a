// The instruction sets that the CPU loops are compiled for, and the one that this process uses.
#pragma once

#include <tuple>

#include "../recurrence.h"

namespace fused_rnn {

template <class S>
struct CellLoops {
  void (*forward)(const ForwardArgs<S>&);
  void (*backward)(const BackwardArgs<S>&);
};

template <class S>
struct Loops {
  CellLoops<S> lstm, gru, gru_reset_before;
};

using AllLoops = std::tuple<Loops<float>, Loops<double>, Loops<BFloat16>, Loops<Float16>>;

struct InstructionSet {
  const char* name;
  bool (*is_here)();
  const AllLoops& (*loops)();
};

// The first of the table that this processor has, or the one that FUSED_RNN_ISA names. Throws std::runtime_error if
// that one does not exist or is not here.
const InstructionSet& instruction_set();

const AllLoops& generic_loops();
#ifdef __x86_64__
const AllLoops& avx2_loops();
const AllLoops& avx512_loops();
const AllLoops& avx512_bf16_loops();  // bfloat16 in its own arithmetic, the rest as avx512
#endif

}  // namespace fused_rnn
