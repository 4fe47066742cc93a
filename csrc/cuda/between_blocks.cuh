// What blocks of a grid exchange, through global memory or, in a cluster, through their shared memory.
#pragma once

#include "barriers.cuh"

namespace fused_rnn {

// ---- Global memory that several blocks share; all at the scope of the GPU ----

// Memory fence: accesses of this thread before it become visible no later than those after it.
FUSED_RNN_DEVICE void fence(Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::fence(site);
#else
  __threadfence();
#endif
}

FUSED_RNN_DEVICE unsigned load_acquire(const unsigned* p, Site site) {
#ifdef FUSED_RNN_EMULATOR
  return emu::load_acquire(p, site);
#else
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}

FUSED_RNN_DEVICE void store_release(unsigned* p, unsigned value, Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_release(p, value, site);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

FUSED_RNN_DEVICE void add_release(unsigned* p, unsigned value, Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::add_release(p, value, site);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

// Relaxed accesses reach other blocks, but order nothing. T has 4 bytes.
template <class T>
FUSED_RNN_DEVICE T load_relaxed(const T* p) {
#ifdef FUSED_RNN_EMULATOR
  return bit_cast<T>(emu::load_relaxed(reinterpret_cast<const uint32_t*>(p)));
#else
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return bit_cast<T>(value);
#endif
}

template <class T>
FUSED_RNN_DEVICE void store_relaxed(T* p, T value) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_relaxed(reinterpret_cast<uint32_t*>(p), bit_cast<uint32_t>(value));
#else
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(bit_cast<uint32_t>(value)) : "memory");
#endif
}

// Of 16 bytes: four accesses of 4 bytes each, in any order.
FUSED_RNN_DEVICE uint4 load_relaxed(const uint4* p) {
#ifdef FUSED_RNN_EMULATOR
  return emu::load_relaxed(p);
#else
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
#endif
}

FUSED_RNN_DEVICE void store_relaxed(uint4* p, uint4 v) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_relaxed(p, v);
#else
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
#endif
}

// The GPU's clock, the same for all blocks.
FUSED_RNN_DEVICE uint64_t nanoseconds() {
#ifdef FUSED_RNN_EMULATOR
  return emu::nanoseconds();
#else
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#endif
}

// Polls of a grid barrier before it gives up, some ten seconds.
constexpr unsigned kMaxPolls = 1u << 24;

// All blocks of the grid, which must all be resident: a cooperative launch. `counter` was zero before the launch and is
// the barrier's alone; the k-th time `target` is k * the number of blocks. False in all threads of a block that has
// waited too long: a block that it waits for is not there.
FUSED_RNN_DEVICE bool grid_barrier(unsigned* counter, unsigned target, Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::require_cooperative();
#endif
  block_barrier(site.part(".enter"));
  bool arrived = true;
  if (threadIdx.x == 0) {
    add_release(counter, 1, site.part(".release"));
    unsigned polls = 0;
    do arrived = load_acquire(counter, site.part(".acquire")) >= target;
    while (!arrived && ++polls < kMaxPolls);
  }
  return block_barrier_and(arrived, site.part(".leave"));
}

// ---- Clusters: the shared memory of the other blocks; capability 9.0 and later ----

FUSED_RNN_DEVICE void cluster_barrier(Site site) {
#ifdef FUSED_RNN_EMULATOR
  emu::cluster_barrier(site);
#else
  if constexpr (kCapability >= 90)
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
  else
    __trap();
#endif
}

FUSED_RNN_DEVICE unsigned cluster_rank() {
#ifdef FUSED_RNN_EMULATOR
  return emu::cluster_rank();
#else
  unsigned rank = 0;
  if constexpr (kCapability >= 90)
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  else
    __trap();
  return rank;
#endif
}

#ifndef FUSED_RNN_EMULATOR
// The address in the cluster's shared memory of what stands at `p` in the block of that rank.
FUSED_RNN_DEVICE uint32_t cluster_address(const void* p, unsigned rank) {
  uint32_t address = 0;
  if constexpr (kCapability >= 90)
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  else
    __trap();
  return address;
}
#endif

// `p` is the address in this block's own shared memory. T has 4 bytes.
template <class T>
FUSED_RNN_DEVICE T load_cluster(const T* p, unsigned rank) {
#ifdef FUSED_RNN_EMULATOR
  return *emu::cluster_address(p, rank);
#else
  uint32_t value = 0;
  if constexpr (kCapability >= 90)
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(cluster_address(p, rank)) : "memory");
  return bit_cast<T>(value);
#endif
}

template <class T>
FUSED_RNN_DEVICE void store_cluster(T* p, unsigned rank, T value) {
#ifdef FUSED_RNN_EMULATOR
  *emu::cluster_address(p, rank) = value;
#else
  if constexpr (kCapability >= 90)
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(cluster_address(p, rank)), "r"(bit_cast<uint32_t>(value))
                 : "memory");
#endif
}

FUSED_RNN_DEVICE uint4 load_cluster(const uint4* p, unsigned rank) {
#ifdef FUSED_RNN_EMULATOR
  return *emu::cluster_address(p, rank);
#else
  uint4 v{};
  if constexpr (kCapability >= 90)
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(cluster_address(p, rank))
                 : "memory");
  return v;
#endif
}

FUSED_RNN_DEVICE void store_cluster(uint4* p, unsigned rank, uint4 v) {
#ifdef FUSED_RNN_EMULATOR
  *emu::cluster_address(p, rank) = v;
#else
  if constexpr (kCapability >= 90)
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(cluster_address(p, rank)), "r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#endif
}

// Stores that count their bytes on the mbarrier of the block that they go to.
template <class T>
FUSED_RNN_DEVICE void store_async_cluster(T* p, unsigned rank, T value, uint64_t* barrier) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_async(emu::cluster_address(p, rank), &value, sizeof(T), emu::cluster_address(barrier, rank));
#else
  if constexpr (kCapability >= 90)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                     cluster_address(p, rank)),
                 "r"(bit_cast<uint32_t>(value)), "r"(cluster_address(barrier, rank))
                 : "memory");
#endif
}

FUSED_RNN_DEVICE void store_async_cluster(uint2* p, unsigned rank, uint2 v, uint64_t* barrier) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_async(emu::cluster_address(p, rank), &v, sizeof(v), emu::cluster_address(barrier, rank));
#else
  if constexpr (kCapability >= 90)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.u32 [%0], {%1, %2}, [%3];" ::"r"(
                     cluster_address(p, rank)),
                 "r"(v.x), "r"(v.y), "r"(cluster_address(barrier, rank))
                 : "memory");
#endif
}

FUSED_RNN_DEVICE void store_async_cluster(uint4* p, unsigned rank, uint4 v, uint64_t* barrier) {
#ifdef FUSED_RNN_EMULATOR
  emu::store_async(emu::cluster_address(p, rank), &v, sizeof(v), emu::cluster_address(barrier, rank));
#else
  if constexpr (kCapability >= 90)
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            cluster_address(p, rank)),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(cluster_address(barrier, rank))
        : "memory");
#endif
}

}  // namespace fused_rnn
