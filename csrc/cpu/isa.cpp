#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_rnn {
namespace {

#ifdef __x86_64__
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first; the last one runs anywhere.
const InstructionSet kInstructionSets[] = {
#ifdef __x86_64__
    {"avx512_bf16", [] { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }, avx512_bf16_loops},
    {"avx512", has_avx512, avx512_loops},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, avx2_loops},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, neon_loops},
#endif
    {"generic", [] { return true; }, generic_loops},
};

const InstructionSet& choose() {
  const char* forced = std::getenv("FUSED_RNN_ISA");
  std::string names;
  for (const InstructionSet& set : kInstructionSets) {
    names += std::string(names.empty() ? "" : ", ") + set.name;
    if (forced && *forced && forced != std::string(set.name)) continue;
    if (set.is_here()) return set;
    if (forced && *forced)
      throw std::runtime_error("FUSED_RNN_ISA=" + std::string(forced) + ": this processor does not have it");
  }
  throw std::runtime_error("FUSED_RNN_ISA=" + std::string(forced) + " is not one of " + names);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace fused_rnn
