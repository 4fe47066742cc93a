// Products of small matrices by a warp: all 32 lanes together.
#pragma once

#include "device.cuh"

namespace fused_rnn {

// An 8x8 matrix of 16-bit numbers, transposed: lane l has elements 2 (l%4) and the next one of row l/4, and gets those
// of column l/4.
FUSED_RNN_DEVICE uint32_t transpose_matrix(uint32_t pair) {
#ifdef FUSED_RNN_EMULATOR
  return emu::movmatrix(pair);
#else
  uint32_t transposed;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
  return transposed;
#endif
}

// D [16, 8] += A [16, 16] B [16, 8] if `condition`, which is the same in all lanes; D in float32. With g = lane/4 and
// t = lane%4 a lane has of D rows g (d[0], d[1]) and g + 8 at columns 2t and 2t + 1; of A rows g (a[0], a[2]) and g + 8
// at k = 2t and 2t + 1 (a[0], a[1]) and 8 further; of B column g at k = 2t and 2t + 1 (b[0]) and 8 further. Capability
// 8.0 and later.
FUSED_RNN_DEVICE void mma_if(bool condition, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
#ifdef FUSED_RNN_EMULATOR
  if (condition) emu::mma(d, a, b, emu::Operand::kBFloat16);
#else
  if constexpr (kCapability >= 80)
    asm volatile(
        "{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %10, 0;\n"
        "  @condition mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        "}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(int(condition)));
  else
    __trap();
#endif
}

// The same in Float16; before capability 8.0 in two halves.
FUSED_RNN_DEVICE void mma_if(bool condition, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
#ifdef FUSED_RNN_EMULATOR
  if (condition) emu::mma(d, a, b, emu::Operand::kFloat16);
#else
  if constexpr (kCapability >= 80)
    asm volatile(
        "{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %10, 0;\n"
        "  @condition mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        "}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(int(condition)));
  else
    for (int half = 0; half < 2; ++half)
      asm volatile(
          "{\n"
          "  .reg .pred condition;\n"
          "  setp.ne.b32 condition, %7, 0;\n"
          "  @condition mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};\n"
          "}"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]), "r"(int(condition)));
#endif
}

// D [16, 8] += A [16, 8] B [8, 8] in TF32, of whose operands the low 13 bits are ignored, if `condition`. D as above;
// of A a lane has rows g (a[0], a[2]) and g + 8 at k = t (a[0], a[1]) and t + 4; of B column g at k = t and t + 4.
// Capability 8.0 and later.
FUSED_RNN_DEVICE void mma_tf32_if(bool condition, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef FUSED_RNN_EMULATOR
  if (condition) emu::mma(d, a, b, emu::Operand::kTf32);
#else
  if constexpr (kCapability >= 80)
    asm volatile(
        "{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %10, 0;\n"
        "  @condition mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        "}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(int(condition)));
  else
    __trap();
#endif
}

}  // namespace fused_rnn
