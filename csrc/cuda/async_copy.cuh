// Asynchronous copies from global into shared memory.
#pragma once

#include "device.cuh"

namespace fused_rnn {

// Copies 16 bytes from global memory, of which those past valid_bytes become zero. Both addresses are multiples of 16.
FUSED_RNN_DEVICE void cp_async16(void* destination, const void* source, int valid_bytes = 16) {
#ifdef FUSED_RNN_EMULATOR
  emu::cp_async16(destination, source, valid_bytes);
#else
  if constexpr (kCapability >= 80) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)), "l"(source),
                 "r"(valid_bytes)
                 : "memory");
  } else {
    for (int i = 0; i < 4; ++i) {
      const int valid = valid_bytes - 4 * i;
      uint32_t word = 0;
      for (int byte = 0; byte < 4 && byte < valid; ++byte)
        word |= uint32_t(static_cast<const unsigned char*>(source)[4 * i + byte]) << 8 * byte;
      static_cast<uint32_t*>(destination)[i] = word;
    }
  }
#endif
}

// Closes a group of this thread's copies.
FUSED_RNN_DEVICE void cp_async_commit() {
#ifdef FUSED_RNN_EMULATOR
  emu::cp_async_commit();
#else
  if constexpr (kCapability >= 80) asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's latest groups are in flight.
template <int kPending>
FUSED_RNN_DEVICE void cp_async_wait(Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::cp_async_wait(kPending, site);
#else
  if constexpr (kCapability >= 80) asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// An mbarrier is a uint64_t in shared memory. Its phase ends when `count` arrivals and all expected bytes are there;
// then the next one begins. Capability 9.0 and later.

// By one thread; a block or cluster barrier must follow.
FUSED_RNN_DEVICE void mbarrier_init(uint64_t* barrier, unsigned count) {
#ifdef FUSED_RNN_EMULATOR
  emu::mbarrier_init(barrier, count);
#else
  if constexpr (kCapability >= 90)
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], %1;\n"
        "fence.mbarrier_init.release.cluster;\n"
        "fence.proxy.async.shared::cta;" ::"r"(shared_address(barrier)),
        "r"(count)
        : "memory");
  else
    __trap();
#endif
}

FUSED_RNN_DEVICE void mbarrier_arrive(uint64_t* barrier) {
#ifdef FUSED_RNN_EMULATOR
  emu::mbarrier_arrive(barrier, 0);
#else
  if constexpr (kCapability >= 90)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
  else
    __trap();
#endif
}

// Arrives, and lets the phase wait for that many bytes more.
FUSED_RNN_DEVICE void mbarrier_expect(uint64_t* barrier, unsigned bytes) {
#ifdef FUSED_RNN_EMULATOR
  emu::mbarrier_arrive(barrier, bytes);
#else
  if constexpr (kCapability >= 90)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
  else
    __trap();
#endif
}

// Waits for the end of a phase, 0 for the first one.
FUSED_RNN_DEVICE void mbarrier_wait(uint64_t* barrier, unsigned phase, Site site) {
  const unsigned parity = phase & 1;  // PTX knows no other values
#ifdef FUSED_RNN_EMULATOR
  emu::mbarrier_wait(barrier, parity, site);
#else
  if constexpr (kCapability >= 90) {
    uint32_t done = 0;
    while (!done)
      asm volatile(
          "{\n"
          "  .reg .pred done;\n"
          "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
          "  selp.u32 %0, 1, 0, done;\n"
          "}"
          : "=r"(done)
          : "r"(shared_address(barrier)), "r"(parity)
          : "memory");
  } else {
    __trap();
  }
#endif
}

// Copies from global memory by one thread's order; the bytes count on the mbarrier. Addresses and bytes are multiples
// of 16.
FUSED_RNN_DEVICE void bulk_copy(void* destination, const void* source, unsigned bytes, uint64_t* barrier) {
#ifdef FUSED_RNN_EMULATOR
  emu::bulk_copy(destination, source, bytes, barrier);
#else
  if constexpr (kCapability >= 90)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(destination)),
                 "l"(source), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
  else
    __trap();
#endif
}

}  // namespace fused_rnn
