// The loops of float32 and bfloat16 in vectors of 64 bytes and with 32 registers, as AVX-512 has them, for a processor
// that lacks it: the compiler builds the vectors from narrower ones. With FUSED_RNN_PAIRS or FUSED_RNN_AMX, those of
// bfloat16 and of float32 in reduced precision, in pairs as AVX512-BF16 has them or in emulated tiles, in which int8
// weights are, too; with FUSED_RNN_UNSIGNED only int8 weights, as VNNI takes them; with FUSED_RNN_AVX_VNNI the same in
// vectors of 32 bytes, with the instruction of AVX-VNNI written out.
#ifdef FUSED_RNN_AVX_VNNI
#include <immintrin.h>

#include <cstdint>
#include <cstring>

static inline __m256i dpbusd(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  int32_t sums[8];
  uint8_t left[32];
  int8_t right[32];
  std::memcpy(sums, &sum, 32), std::memcpy(left, &unsigned_bytes, 32), std::memcpy(right, &signed_bytes, 32);
  for (int i = 0; i < 32; ++i) sums[i / 4] += left[i] * right[i];
  std::memcpy(&sum, sums, 32);
  return sum;
}
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 dpbusd
#define FUSED_RNN_VECTOR_BYTES 32
#define FUSED_RNN_REGISTERS 16
#else
#define FUSED_RNN_VECTOR_BYTES 64
#define FUSED_RNN_REGISTERS 32
#endif
#include "../../csrc/cpu/isa.h"
#include "../../csrc/cpu/loops.inl.h"

namespace fused_rnn {

static const AllLoops& wide_loops() {
#if defined(FUSED_RNN_PAIRS)
  static const AllLoops all{{}, {}, loops<BFloat16>(), {}, loops<float, BFloat16>(), {}, {}};
#elif defined(FUSED_RNN_AMX)
  static const AllLoops all{{}, {}, loops<BFloat16>(), {}, loops<float, BFloat16>(), {}, quantized_loops<int8_t>()};
#elif defined(FUSED_RNN_UNSIGNED) || defined(FUSED_RNN_AVX_VNNI)
  static const AllLoops all{{}, {}, {}, {}, {}, {}, quantized_loops<int8_t>()};
#else
  static const AllLoops all{loops<float>(),           {}, loops<BFloat16>(), {}, {}, quantized_loops<Widened>(),
                            quantized_loops<int8_t>()};
#endif
  return all;
}

const InstructionSet& instruction_set() {
  static const InstructionSet set{"wide", [] { return true; }, wide_loops};
  return set;
}

}  // namespace fused_rnn
