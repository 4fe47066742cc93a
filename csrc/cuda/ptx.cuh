// What kernels ask of the hardware. The only file with inline PTX: every function stands here with its PTX and with
// what the tests' emulator does instead (tests/emu, where FUSED_RNN_EMULATOR is defined). Kernels synchronise, and get
// shared memory, in these ways only, so that the emulator sees all of it.
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

#else

// The capability that this pass of the compiler is for; 0 in the host's.
#ifdef __CUDA_ARCH__
constexpr int kCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCapability = 0;
#endif

// The name of a synchronising call, by which a test switches it off in the emulator. Nothing is left of it on a device.
struct Site {
  FUSED_RNN_DEVICE Site(const char*) {}
  FUSED_RNN_DEVICE Site part(const char*) const { return *this; }
};

FUSED_RNN_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

#endif

// ---- Bits ----

// Of a number of 32 or 16 bits, as the low bits of a word.
template <class S>
FUSED_RNN_DEVICE uint32_t to_bits(S value) {
  if constexpr (sizeof(S) == 4)
    return bit_cast<uint32_t>(value);
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

// ---- Barriers ----

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

// ---- Global memory that several blocks share; all at the scope of the GPU ----

// Orders what this thread did before with what it does after.
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

// ---- Global memory under a condition, without a branch ----

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

// ---- Asynchronous copies into shared memory ----

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
// then the next one begins. From here to the end of the clusters: capability 9.0 and later.

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

// ---- Clusters: the shared memory of the other blocks ----

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

// ---- Matrices: all 32 lanes of a warp together ----

// Four 8x8 matrices of 16-bit numbers: lane l gives the address of row l%8 of matrix l/8, and gets in r[i] the elements
// 2 (l%4) and the next one of row l/4 of matrix i.
FUSED_RNN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef FUSED_RNN_EMULATOR
  emu::ldmatrix(r, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// The same of the transposed matrices: r[i] is the elements 2 (l%4) and the next one of column l/4 of matrix i.
FUSED_RNN_DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
#ifdef FUSED_RNN_EMULATOR
  emu::ldmatrix(r, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
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

FUSED_RNN_DEVICE unsigned ballot(bool predicate) {
#ifdef FUSED_RNN_EMULATOR
  return emu::ballot(predicate);
#else
  return __ballot_sync(~0u, predicate);
#endif
}

// ---- Numbers ----

FUSED_RNN_DEVICE float to_float(float value) { return value; }
FUSED_RNN_DEVICE float to_float(BFloat16 value) { return float(value); }
FUSED_RNN_DEVICE float to_float(Float16 value) {
#ifdef FUSED_RNN_EMULATOR
  return float(value);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

// Rounds to nearest even. A NaN stays one; which one differs between devices and the emulator.
template <class S>
FUSED_RNN_DEVICE S from_float(float value);
template <>
FUSED_RNN_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
FUSED_RNN_DEVICE BFloat16 from_float<BFloat16>(float value) {
#ifndef FUSED_RNN_EMULATOR
  if constexpr (kCapability >= 80) {
    uint32_t pair;  // an instruction for two is four times as fast as that for one
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
    return from_bits<BFloat16>(pair);
  }
#endif
  return BFloat16(value);
}
template <>
FUSED_RNN_DEVICE Float16 from_float<Float16>(float value) {
#ifdef FUSED_RNN_EMULATOR
  return Float16(value);
#else
  if constexpr (kCapability >= 80) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
    return from_bits<Float16>(pair);
  }
  Float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#endif
}

// To the 10 explicit bits of TF32: nearest, halfway cases away from zero.
FUSED_RNN_DEVICE float round_to_tf32(float value) {
#ifndef FUSED_RNN_EMULATOR
  if constexpr (kCapability >= 80) {
    uint32_t result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return bit_cast<float>(result);
  }
#endif
  return value == value ? bit_cast<float>((bit_cast<uint32_t>(value) + 0x1000u) & ~0x1fffu) : value;
}

// 2^value within 2 ulp; subnormal numbers count as zero.
FUSED_RNN_DEVICE float exp2_approximate(float value) {
#ifdef FUSED_RNN_EMULATOR
  return emu::exp2(value);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#endif
}

// Within 1 ulp; subnormal numbers count as zero.
FUSED_RNN_DEVICE float reciprocal(float value) {
#ifdef FUSED_RNN_EMULATOR
  return emu::reciprocal(value);
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
#endif
}

}  // namespace fused_rnn
