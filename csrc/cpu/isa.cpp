#include "isa.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fused_rnn {
namespace {

#ifdef __x86_64__
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx_vnni() {  // GCC 10's __builtin_cpu_supports does not know it
  unsigned a, b, c, d;
  constexpr unsigned kVnni = 1u << 4;  // of CPUID leaf 7, subleaf 1
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kVnni) != 0;
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }

// Tiles need more than the processor: a system that saves them, and its permission for this process, which threads and
// forked children inherit. It is refused, for instance, where a thread's signal stack is too small for the tiles. GCC's
// __builtin_cpu_supports knows nothing of either. Source: Linux, Documentation/arch/x86/xstate.rst.
bool has_amx() {
  if (!has_avx512_bf16()) return false;
  unsigned a, b, c, d;
  constexpr unsigned kSavesStates = 1u << 27, kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // of CPUID leaves 1 and 7
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSavesStates)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileStates = 3u << 17;  // their shapes and their data
  if ((low & kTileStates) != kTileStates) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// In order of preference. `generic` runs on every processor, so a row after it is only used by name.
const InstructionSet kInstructionSets[] = {
#ifdef __x86_64__
    {"amx", has_amx, amx_loops},
    {"avx512_bf16", has_avx512_bf16, avx512_bf16_loops},
    {"avx512_vnni", has_avx512_vnni, avx512_vnni_loops},
    {"avx512", has_avx512, avx512_loops},
    {"avx_vnni", has_avx_vnni, avx_vnni_loops},
    {"avx2", has_avx2, avx2_loops},
#elif defined(__aarch64__)
    {"neon_dot", [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }, neon_dot_loops},
    {"neon", [] { return true; }, neon_loops},
#endif
    {"generic", [] { return true; }, generic_loops},
#if defined(__x86_64__) && defined(FUSED_RNN_POISON)
    {"amx_emulated", has_avx2, amx_emulated_loops},
#endif
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

const InstructionSet& instruction_set(int64_t number) {
  if (number == 0) return instruction_set();
  for (const auto& [here, set] : instruction_sets_here())
    if (here == number) return *set;
  throw std::runtime_error("there is no instruction set of number " + std::to_string(number) + " here");
}

const std::vector<std::pair<int64_t, const InstructionSet*>>& instruction_sets_here() {
  static const auto all = [] {
    std::vector<std::pair<int64_t, const InstructionSet*>> here;
    int64_t number = 0;
    for (const InstructionSet& set : kInstructionSets) {
      ++number;
      if (set.is_here()) here.emplace_back(number, &set);
    }
    return here;
  }();
  return all;
}

}  // namespace fused_rnn
