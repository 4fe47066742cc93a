// Loads and stores of global memory under a condition, without a branch.
#pragma once

#include "device.cuh"

namespace fused_rnn {

// The low bits of `bits` become those of *p if `condition`. For memory that no thread writes.
template <class S>
FUSED_RNN_DEVICE void load_if(bool condition, const S* p, uint32_t& bits) {
#ifdef FUSED_RNN_EMULATOR
  if (condition) bits = to_bits(*p);
#else
  if constexpr (sizeof(S) == 4)
    asm("{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %2, 0;\n"
        "  @condition ld.global.u32 %0, [%1];\n"
        "}"
        : "+r"(bits)
        : "l"(p), "r"(int(condition)));
  else if constexpr (sizeof(S) == 1)
    asm("{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %2, 0;\n"
        "  @condition ld.global.u8 %0, [%1];\n"
        "}"
        : "+r"(bits)
        : "l"(p), "r"(int(condition)));
  else
    asm("{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %2, 0;\n"
        "  @condition ld.global.u16 %0, [%1];\n"
        "}"
        : "+r"(bits)
        : "l"(p), "r"(int(condition)));
#endif
}

// Loads 16 bytes, zeros unless `condition`. p is a multiple of 16 bytes.
template <class T, int n>
FUSED_RNN_DEVICE void load16_if(bool condition, const T* p, T (&to)[n]) {
  static_assert(sizeof(to) == sizeof(uint4), "16 bytes");
  uint4 words{};
#ifdef FUSED_RNN_EMULATOR
  if (condition) std::memcpy(&words, p, sizeof(words));
#else
  asm("{\n"
      "  .reg .pred condition;\n"
      "  setp.ne.b32 condition, %5, 0;\n"
      "  @condition ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)
      : "l"(p), "r"(int(condition)));
#endif
  std::memcpy(to, &words, sizeof(words));
}

// *p = value if `condition`.
template <class S>
FUSED_RNN_DEVICE void store_if(bool condition, S* p, S value) {
#ifdef FUSED_RNN_EMULATOR
  if (condition) *p = value;
#else
  if constexpr (sizeof(S) == 4)
    asm volatile(
        "{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %2, 0;\n"
        "  @condition st.global.u32 [%0], %1;\n"
        "}" ::"l"(p),
        "r"(to_bits(value)), "r"(int(condition)));
  else
    asm volatile(
        "{\n"
        "  .reg .pred condition;\n"
        "  setp.ne.b32 condition, %2, 0;\n"
        "  @condition st.global.u16 [%0], %1;\n"
        "}" ::"l"(p),
        "r"(to_bits(value)), "r"(int(condition)));
#endif
}

}  // namespace fused_rnn
