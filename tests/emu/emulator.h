// Runs the kernels of csrc/cuda on the CPU. Every CUDA thread is a fiber; all fibers share one thread of the process
// and change places only inside the functions below, which csrc/cuda/device.cuh and the headers over it call. A mistake
// (a deadlock, a copy that was not waited for, a data race, ...) ends the launch with a std::runtime_error.
//
// Force-included before the kernels' sources, in place of nvcc's own headers; needs no CUDA toolkit. What a launch
// reads from the environment:
//   EMU_SEED      0 round robin; odd: a random order; even: a random order in which some warps run far ahead of others
//   EMU_MUTANT    the name of the synchronising calls that are switched off
//   EMU_RESIDENT  how many blocks run at the same time (4, and of a cooperative launch all: another number is a fault)
#pragma once

#define FUSED_RNN_EMULATOR 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// ---- CUDA's names ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };  // a launch that fails throws
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

#define threadIdx (emu::current->thread_index)
#define blockIdx (emu::current->block_index)
#define blockDim (emu::current->block_size)
#define gridDim (emu::current->grid_size)

namespace emu {

// ---- For tests ----

// In a namespace of its own: csrc/cuda has functions of the same names as emu, which an argument's type must not find.
namespace names {

// The name of one or more synchronising calls in a kernel. A call that consists of others gives each a part of its own.
struct Site {
  const char* name;
  const char* suffix = "";
  Site(const char* name) : name(name) {}
  Site(const char* name, const char* suffix) : name(name), suffix(suffix) {}
  Site part(const char* part) const { return {name, part}; }
};

}  // namespace names

using names::Site;

struct SiteCalls {
  std::string name;
  long calls;  // since forget_sites, also while switched off
};
std::vector<SiteCalls> sites();
void forget_sites();

// ---- For csrc/cuda/launch.cuh ----

struct Shape {
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  unsigned cluster;
};
using Body = void (*)(const void*);
void run(const Shape& shape, Body body, const void* argument);

template <class Kernel>
cudaError_t launch(const Shape& shape, const Kernel& kernel) {
  run(shape, [](const void* k) { (*static_cast<const Kernel*>(k))(); }, &kernel);
  return cudaSuccess;
}

// ---- For csrc/cuda/device.cuh and the headers over it, which document each function ----

// The running thread, as it sees itself.
struct Context {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  unsigned lane, rank;  // in the warp, in the cluster
  unsigned char* shared;
};
extern Context* current;

inline unsigned char* shared_memory() { return current->shared; }
inline int lane() { return int(current->lane); }
inline unsigned cluster_rank() { return current->rank; }

void block_barrier(Site site);
bool block_barrier_and(bool ok, Site site);
void warp_barrier(Site site);
void cluster_barrier(Site site);
void require_cooperative();

void fence(Site site);
unsigned load_acquire(const unsigned* p, Site site);
void add_release(unsigned* p, unsigned value, Site site);
void store_release(unsigned* p, unsigned value, Site site);
uint32_t load_relaxed(const uint32_t* p);
void store_relaxed(uint32_t* p, uint32_t value);
uint4 load_relaxed(const uint4* p);
void store_relaxed(uint4* p, uint4 v);

void cp_async16(void* destination, const void* source, int valid_bytes);
void cp_async_commit();
void cp_async_wait(int pending, Site site);

void mbarrier_init(uint64_t* barrier, unsigned count);
void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes);
void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site);
void bulk_copy(void* destination, const void* source, unsigned bytes, uint64_t* barrier);
void store_async(void* destination, const void* value, unsigned bytes, uint64_t* barrier);

void* cluster_pointer(const void* p, unsigned rank);
template <class T>
T* cluster_address(const T* p, unsigned rank) {
  return static_cast<T*>(cluster_pointer(p, rank));
}

enum class Operand { kBFloat16, kFloat16, kTf32 };
void mma(float* d, const uint32_t* a, const uint32_t* b, Operand operand);
uint32_t movmatrix(uint32_t pair);
uint64_t nanoseconds();
uint32_t shuffle(uint32_t value, int source_lane);
unsigned ballot(bool predicate);

inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }
inline float reciprocal(float value) { return flushed(1.0f / flushed(value)); }
inline float exp2(float value) { return flushed(std::exp2(value)); }

}  // namespace emu
