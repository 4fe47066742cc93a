// The instruction sets that the CPU loops are compiled for, and the one that this process uses.
#pragma once

#include <array>
#include <tuple>

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

using AllLoops = std::tuple<Loops<float>, Loops<double>, Loops<BFloat16>, Loops<Float16>>;

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
const CellLoops<S>& loops_of(const CellTraits& cell) {
  return std::get<Loops<S>>(instruction_set().loops())[cell.index];
}

const AllLoops& generic_loops();
#ifdef __x86_64__
const AllLoops& avx2_loops();
const AllLoops& avx512_loops();
const AllLoops& avx512_bf16_loops();  // bfloat16 in its own arithmetic, the rest as avx512
const AllLoops& amx_loops();          // bfloat16 in tiles, the rest as avx512
#ifdef FUSED_RNN_POISON
const AllLoops& amx_emulated_loops();  // the same without its instructions, the rest as generic
#endif
#elif defined(__aarch64__)
const AllLoops& neon_loops();
#endif

}  // namespace fused_rnn
