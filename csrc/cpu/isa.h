// The instruction sets that the CPU loops are compiled for, and the one that this process uses.
#pragma once

#include <array>
#include <type_traits>

#include "../cell_traits.h"
#include "../recurrence.h"

namespace fused_rnn {

template <class S>
struct CellLoops {
  void (*forward)(const ForwardArgs<S>&);
  void (*backward)(const BackwardArgs<S>&);
  int64_t (*workers)(const LayerSizes&, bool backward);  // of such a call, and so its threads
};

template <class S>
using Loops = std::array<CellLoops<S>, kCells.size()>;  // by index of the cell

struct AllLoops {
  Loops<float> float32;
  Loops<double> float64;
  Loops<BFloat16> bfloat16;
  Loops<Float16> float16;
  Loops<float> reduced;  // float32 with factors of bfloat16, or null where the processor does not multiply it
};

struct InstructionSet {
  const char* name;
  bool (*is_here)();
  const AllLoops& (*loops)();
};

// The first of the table that this processor has, or the one that FUSED_RNN_ISA names. Throws std::runtime_error if
// that one does not exist or is not here.
const InstructionSet& instruction_set();

// The loops of a cell in the instruction set of this process.
template <class S>
const CellLoops<S>& loops_of(const CellTraits& cell, bool reduced_precision = false) {
  const AllLoops& all = instruction_set().loops();
  const size_t i = cell.index;
  if constexpr (std::is_same<S, float>::value)
    return (reduced_precision && all.reduced[i].forward ? all.reduced : all.float32)[i];
  else if constexpr (std::is_same<S, double>::value)
    return all.float64[i];
  else if constexpr (std::is_same<S, BFloat16>::value)
    return all.bfloat16[i];
  else
    return all.float16[i];
}

const AllLoops& generic_loops();
#ifdef __x86_64__
const AllLoops& avx2_loops();
const AllLoops& avx512_loops();
const AllLoops& avx512_bf16_loops();  // bfloat16 and reduced float32 in its own arithmetic, the rest as avx512
const AllLoops& amx_loops();          // the same in tiles
#ifdef FUSED_RNN_POISON
const AllLoops& amx_emulated_loops();  // the same without its instructions, the rest as generic
#endif
#elif defined(__aarch64__)
const AllLoops& neon_loops();
#endif

}  // namespace fused_rnn
