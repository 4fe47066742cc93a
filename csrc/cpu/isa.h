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

// How the panels of int8 weights are laid out (GatePanels in layout.inl.h).
struct Int8Layout {
  int64_t lanes;   // of a vector
  int64_t units;   // vectors of units in a panel
  int64_t tile;    // vectors that lie side by side, of a panel with all gates
  int64_t offset;  // added to each number
};

// Loops of float32 layers with int8 weights; they have no backward.
struct Int8Loops {
  Loops<float> loops;
  std::array<Int8Layout, kCells.size()> layouts;
};

struct AllLoops {
  Loops<float> float32;
  Loops<double> float64;
  Loops<BFloat16> bfloat16;
  Loops<Float16> float16;
  Loops<float> reduced;  // float32 with factors of bfloat16, or null where the processor does not multiply it
  Int8Loops int8;
};

struct InstructionSet {
  const char* name;
  bool (*is_here)();
  const AllLoops& (*loops)();
};

// The first of the table that this processor has, or the one that FUSED_RNN_ISA names. Throws std::runtime_error if
// that one does not exist or is not here.
const InstructionSet& instruction_set();

// The factors of the products in float32 layers.
enum class Float32Factors { kFloat32, kBFloat16, kInt8 };

// The loops of a cell in the instruction set of this process.
template <class S>
const CellLoops<S>& loops_of(const CellTraits& cell, Float32Factors factors = Float32Factors::kFloat32) {
  const AllLoops& all = instruction_set().loops();
  const size_t i = cell.index;
  if constexpr (std::is_same<S, float>::value)
    return factors == Float32Factors::kInt8       ? all.int8.loops[i]
           : factors == Float32Factors::kBFloat16 ? all.reduced[i]
                                                  : all.float32[i];
  else if constexpr (std::is_same<S, double>::value)
    return all.float64[i];
  else if constexpr (std::is_same<S, BFloat16>::value)
    return all.bfloat16[i];
  else
    return all.float16[i];
}

inline const Int8Layout& int8_layout(const CellTraits& cell) {
  return instruction_set().loops().int8.layouts[cell.index];
}

// The size of the panels of an int8 weight [G*H, K]. After them come as many bytes as the last word of a row has
// numbers, so that the size tells K.
inline int64_t int8_panels(const CellTraits& cell, int64_t K, int64_t H) {
  const Int8Layout& layout = int8_layout(cell);
  const int64_t units = layout.lanes * layout.units, depth = 4;
  return cell.gates * ceil_div(H, units) * units * ceil_div(K, depth) * depth + K % depth;
}

const AllLoops& generic_loops();
#ifdef __x86_64__
const AllLoops& avx2_loops();
const AllLoops& avx512_loops();
const AllLoops& avx512_vnni_loops();  // int8 in its own arithmetic, the rest as avx512
const AllLoops& avx512_bf16_loops();  // bfloat16 and reduced float32 in its own arithmetic, the rest as avx512_vnni
const AllLoops& amx_loops();          // the same in tiles
#ifdef FUSED_RNN_POISON
const AllLoops& amx_emulated_loops();  // the same without its instructions, the rest as generic
#endif
#elif defined(__aarch64__)
const AllLoops& neon_loops();
const AllLoops& neon_dot_loops();  // int8 in its own arithmetic, the rest as neon
#endif

}  // namespace fused_rnn
