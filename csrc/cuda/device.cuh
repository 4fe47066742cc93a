// A GPU, or the tests' emulator of one (tests/emu, where FUSED_RNN_EMULATOR is defined). All inline PTX stands in this
// file and in those that include it: barriers, predicated, matrix, numbers, async_copy, between_blocks; each function
// has its PTX and a call of the emulator. Kernels synchronise, and get shared memory, by these functions only, so that
// the emulator sees all of it.
#pragma once

#include <cstdint>

#include "../scalar.h"

#ifdef FUSED_RNN_EMULATOR

#define FUSED_RNN_DEVICE FUSED_RNN_INLINE
#define FUSED_RNN_KERNEL
// Declares `name`, the start of the block's dynamic shared memory, aligned to 1024 bytes.
#define FUSED_RNN_SHARED_MEMORY(name) unsigned char* const name = emu::shared_memory()

#else

#include <cuda_runtime.h>

#define FUSED_RNN_DEVICE __device__ __forceinline__
#define FUSED_RNN_KERNEL __global__
#define FUSED_RNN_SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

#endif

namespace fused_rnn {

#ifdef FUSED_RNN_EMULATOR

using Site = emu::Site;

template <int>
constexpr bool kIsAtLeast = true;

#else

// The capability that this pass of the compiler is for; 0 in the host's.
#ifdef __CUDA_ARCH__
constexpr int kCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCapability = 0;
#endif

// Whether the kernel is compiled for such a device or a later one.
template <int kOldest>
constexpr bool kIsAtLeast = kCapability >= kOldest;

// The name of a synchronising call, by which a test switches it off in the emulator. Nothing is left of it on a device.
struct Site {
  FUSED_RNN_DEVICE Site(const char*) {}
  FUSED_RNN_DEVICE Site part(const char*) const { return *this; }
};

FUSED_RNN_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

#endif

// Of a number of 32, 16 or 8 bits, as the low bits of a word.
template <class S>
FUSED_RNN_DEVICE uint32_t to_bits(S value) {
  if constexpr (sizeof(S) == 4)
    return bit_cast<uint32_t>(value);
  else if constexpr (sizeof(S) == 1)
    return bit_cast<uint8_t>(value);
  else
    return bit_cast<uint16_t>(value);
}
template <class S>
FUSED_RNN_DEVICE S from_bits(uint32_t bits) {
  if constexpr (sizeof(S) == 4)
    return bit_cast<S>(bits);
  else
    return bit_cast<S>(uint16_t(bits));
}

}  // namespace fused_rnn
