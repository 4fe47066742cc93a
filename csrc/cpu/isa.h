// The instruction sets that the CPU loops are compiled for, and the one that this process uses.
#pragma once

#include <array>
#include <type_traits>
#include <utility>
#include <vector>

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

// How the panels of quantised weights are laid out (GatePanels in layout.inl.h).
struct PanelLayout {
  int64_t lanes;   // of a vector
  int64_t units;   // vectors of units in a panel
  int64_t tile;    // vectors that lie side by side, of a panel with all gates
  int64_t offset;  // added to each number of int8
};

// Loops of float32 layers with quantised weights; they have no backward.
struct QuantizedLoops {
  Loops<float> loops;
  std::array<PanelLayout, kCells.size()> layouts;
};

struct AllLoops {
  Loops<float> float32;
  Loops<double> float64;
  Loops<BFloat16> bfloat16;
  Loops<Float16> float16;
  Loops<float> reduced;  // float32 with factors of bfloat16, or null where the processor does not multiply it
  QuantizedLoops quantized_bfloat16, quantized_int8;
};

struct InstructionSet {
  const char* name;
  bool (*is_here)();
  const AllLoops& (*loops)();
};

// The first of the table that this processor has, or the one that FUSED_RNN_ISA names. Throws std::runtime_error if
// that one does not exist or is not here.
const InstructionSet& instruction_set();

// The set of a number from 1, its place in the table; that of the process for 0. Throws std::runtime_error if there is
// none or it is not here.
const InstructionSet& instruction_set(int64_t number);

// The sets of the table that are here, each with its number.
const std::vector<std::pair<int64_t, const InstructionSet*>>& instruction_sets_here();

// The factors of the products in float32 layers, or what their quantised weights are made of.
enum class Float32Factors { kFloat32, kBFloat16, kQuantizedBFloat16, kQuantizedInt8 };
inline Float32Factors factors_of(Quantized weights) {
  return weights == Quantized::kInt8       ? Float32Factors::kQuantizedInt8
         : weights == Quantized::kBFloat16 ? Float32Factors::kQuantizedBFloat16
                                           : Float32Factors::kFloat32;
}

// The loops of a cell in an instruction set.
template <class S>
const CellLoops<S>& loops_of(const CellTraits& cell, Float32Factors factors = Float32Factors::kFloat32,
                             const InstructionSet& set = instruction_set()) {
  const AllLoops& all = set.loops();
  const size_t i = cell.index;
  if constexpr (std::is_same<S, float>::value) {
    switch (factors) {
      case Float32Factors::kBFloat16: return all.reduced[i];
      case Float32Factors::kQuantizedBFloat16: return all.quantized_bfloat16.loops[i];
      case Float32Factors::kQuantizedInt8: return all.quantized_int8.loops[i];
      default: return all.float32[i];
    }
  } else if constexpr (std::is_same<S, double>::value)
    return all.float64[i];
  else if constexpr (std::is_same<S, BFloat16>::value)
    return all.bfloat16[i];
  else
    return all.float16[i];
}

inline const PanelLayout& panel_layout(const CellTraits& cell, Quantized type) {
  const AllLoops& all = instruction_set().loops();
  return (type == Quantized::kInt8 ? all.quantized_int8 : all.quantized_bfloat16).layouts[cell.index];
}

// The numbers in the panels of a weight [G*H, K]. After them come as many as the last word of a row has, so that the
// size tells K.
inline int64_t quantized_elements(const CellTraits& cell, Quantized type, int64_t K, int64_t H) {
  const PanelLayout& layout = panel_layout(cell, type);
  const int64_t units = layout.lanes * layout.units, depth = type == Quantized::kInt8 ? 4 : 2;
  return cell.gates * ceil_div(H, units) * units * ceil_div(K, depth) * depth + K % depth;
}

const AllLoops& generic_loops();
#ifdef __x86_64__
const AllLoops& avx2_loops();
const AllLoops& avx_vnni_loops();  // int8 in its own arithmetic, the rest as avx2
const AllLoops& avx512_loops();
const AllLoops& avx512_vnni_loops();  // int8 in its own arithmetic, the rest as avx512
const AllLoops& avx512_bf16_loops();  // bfloat16 and reduced float32 in its own arithmetic, the rest as avx512_vnni
const AllLoops& amx_loops();          // the same and int8 in tiles
#ifdef FUSED_RNN_POISON
const AllLoops& amx_emulated_loops();  // the same without its instructions, the rest as generic
#endif
#elif defined(__aarch64__)
const AllLoops& neon_loops();
const AllLoops& neon_dot_loops();  // int8 in its own arithmetic, the rest as neon
#endif

}  // namespace fused_rnn
