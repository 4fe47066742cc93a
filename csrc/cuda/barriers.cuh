// Barriers of a block and of a warp, and values that the lanes of a warp exchange.
#pragma once

#include "device.cuh"

namespace fused_rnn {

FUSED_RNN_DEVICE void block_barrier(Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::block_barrier(site);
#else
  __syncthreads();
#endif
}

// A block barrier that gives every thread whether `ok` was true in all of them.
FUSED_RNN_DEVICE bool block_barrier_and(bool ok, Site site) {
#ifdef FUSED_RNN_EMULATOR
  return emu::block_barrier_and(ok, site);
#else
  return __syncthreads_and(ok);
#endif
}

FUSED_RNN_DEVICE void warp_barrier(Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::warp_barrier(site);
#else
  __syncwarp();
#endif
}

// The compiler moves no memory access across it. So loads for the next step share no scoreboard with results that this
// step needs.
FUSED_RNN_DEVICE void keep_order() {
#ifndef FUSED_RNN_EMULATOR
  __syncwarp();
#endif
}

// ---- Warps: all 32 lanes together; a value has 4 bytes. No order of memory accesses follows from these ----

template <class T>
FUSED_RNN_DEVICE T shuffle_xor(T value, int mask) {
#ifdef FUSED_RNN_EMULATOR
  return bit_cast<T>(emu::shuffle(bit_cast<uint32_t>(value), emu::lane() ^ mask));
#else
  return __shfl_xor_sync(~0u, value, mask);
#endif
}

// The value of that lane among the `width` lanes, a power of two, that this one belongs to.
template <class T>
FUSED_RNN_DEVICE T shuffle(T value, int lane, int width = 32) {
#ifdef FUSED_RNN_EMULATOR
  return bit_cast<T>(emu::shuffle(bit_cast<uint32_t>(value), (emu::lane() & -width) | (lane & (width - 1))));
#else
  return __shfl_sync(~0u, value, lane, width);
#endif
}

// A value that all lanes have, in a register: the compiler would compute it from the kernel's arguments at each step
// anew, and wait for them.
FUSED_RNN_DEVICE int kept(int value) { return shuffle(value, 0); }

FUSED_RNN_DEVICE unsigned ballot(bool predicate) {
#ifdef FUSED_RNN_EMULATOR
  return emu::ballot(predicate);
#else
  return __ballot_sync(~0u, predicate);
#endif
}

}  // namespace fused_rnn
