// What one exchange between blocks costs on this GPU, by every way there is: the numbers that decide how the blocks of
// a layer hand h to each other.
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a bench/exchange.cu -o exchange && ./exchange
// A JSON line for each way and group size: microseconds per exchange, the best of five launches of kExchanges. `group`
// blocks exchange with each other; `blocks` are in the launch. Received data is checked, and every wait of ours is
// bounded: a protocol that is wrong says so and does not hang.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace cg = cooperative_groups;

namespace {

constexpr int kThreads = 256;
constexpr int kExchanges = 4000;
constexpr int kLaunches = 6;  // the first one warms up
constexpr int kWords = 8;     // of 16 bytes: what a block sends to each block of its group in one exchange
[[maybe_unused]] constexpr int kLargestCluster = 16;  // beyond 8 only where the device allows it
constexpr int kCounterStride = 32;                    // counters of different groups are in different cache lines
constexpr int kSpins = 1 << 20;                       // about a second

enum Trouble : unsigned { kLate = 1, kWrong = 2 };

struct Memory {
  unsigned* counters;  // [groups, kCounterStride], zero
  uint4* words;        // [2, blocks, kWords], all bits set
  unsigned* trouble;   // what went wrong, or'ed
};

// ---- Device memory, with its order ----

__device__ unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ void add_release(unsigned* p, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// 16 bytes that arrive together: a b128 is one access in PTX's memory model, a vector of four words would be four.
__device__ uint4 load_word(const uint4* p) {
  uint64_t low, high;
  asm volatile("{.reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v;}"
               : "=l"(low), "=l"(high)
               : "l"(p)
               : "memory");
  return make_uint4(unsigned(low), unsigned(low >> 32), unsigned(high), unsigned(high >> 32));
}

__device__ void store_word(uint4* p, uint4 v) {
  const uint64_t low = uint64_t(v.y) << 32 | v.x, high = uint64_t(v.w) << 32 | v.z;
  asm volatile("{.reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v;}" ::"l"(p), "l"(low), "l"(high)
               : "memory");
}

// Whether all threads of the block may go on; otherwise all of them stop.
__device__ bool all_well(unsigned trouble, const Memory& m) {
  if (trouble) atomicOr(m.trouble, trouble);
  return !__syncthreads_or(trouble & kLate);
}

__device__ unsigned checked(bool right) { return right ? 0 : kWrong; }

// ---- Through device memory ----

__global__ void grid_barrier(Memory, int) {
  for (int i = 0; i < kExchanges; ++i) cg::this_grid().sync();
}

// One counter per group: each block adds one, and waits until all have.
__global__ void counter_barrier(Memory m, int group) {
  unsigned* const counter = m.counters + blockIdx.x / group * kCounterStride;
  for (unsigned i = 1; i <= kExchanges; ++i) {
    unsigned trouble = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
      add_release(counter, 1);
      int spins = 0;
      while (load_acquire(counter) < i * group && ++spins < kSpins) {
      }
      if (spins == kSpins) trouble = kLate;
    }
    if (!all_well(trouble, m)) return;
  }
}

// No flag beside the data: each word carries the number of its exchange, and a reader waits for that. Two buffers are
// enough: who sends exchange i + 2 has everybody's exchange i + 1, which nobody sends before having read exchange i.
__global__ void marked_data(Memory m, int group) {
  const int first = blockIdx.x / group * group;
  for (unsigned i = 1; i <= kExchanges; ++i) {
    uint4* const words = m.words + size_t(i & 1) * gridDim.x * kWords;
    if (threadIdx.x < kWords)
      store_word(words + blockIdx.x * kWords + threadIdx.x, make_uint4(i, blockIdx.x, threadIdx.x, i));
    unsigned trouble = 0;
    for (int w = threadIdx.x; w < group * kWords; w += kThreads) {
      uint4 word = load_word(words + first * kWords + w);
      int spins = 0;
      while (word.w != i && ++spins < kSpins) word = load_word(words + first * kWords + w);
      trouble |= spins == kSpins ? kLate : checked(word.x == i && word.y == first + w / kWords);
    }
    if (!all_well(trouble, m)) return;
  }
}

// ---- Through a cluster's shared memory; empty where the architecture has no clusters ----

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FUSED_RNN_CLUSTERS 1
#endif

__global__ void cluster_barrier(Memory, int) {
#ifdef FUSED_RNN_CLUSTERS
  for (int i = 0; i < kExchanges; ++i) cg::this_cluster().sync();
#endif
}

// Each block stores its words into the shared memory of every block of the cluster; then a cluster barrier.
__global__ void cluster_push(Memory m, int) {
#ifdef FUSED_RNN_CLUSTERS
  __shared__ uint4 box[2][kLargestCluster * kWords];  // [exchange % 2, sender, word]
  const auto cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), words = cluster.num_blocks() * kWords;
  unsigned trouble = 0;
  for (unsigned i = 0; i < kExchanges; ++i) {
    for (unsigned w = threadIdx.x; w < words; w += kThreads)
      *cluster.map_shared_rank(&box[i & 1][rank * kWords + w % kWords], w / kWords) = make_uint4(i, rank, w, i);
    cluster.sync();
    for (unsigned w = threadIdx.x; w < words; w += kThreads)
      trouble |= checked(box[i & 1][w].x == i && box[i & 1][w].y == w / kWords);
  }
  cluster.sync();  // no block ends while another one may still store to it
  all_well(trouble, m);
#endif
}

#ifdef FUSED_RNN_CLUSTERS

__device__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ uint32_t in_block(uint32_t address, unsigned rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ void init_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// The only arrival of a phase; the phase ends when as many bytes have come as well.
__device__ void expect_bytes(uint64_t* barrier, unsigned bytes) {
  asm volatile("{.reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1;}" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Sleeps for a microsecond at most.
__device__ bool phase_ended(uint64_t* barrier, unsigned parity) {
  unsigned ended;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, %3; selp.u32 %0, 1, 0, p;}"
      : "=r"(ended)
      : "r"(shared_address(barrier)), "r"(parity), "n"(1000)
      : "memory");
  return ended;
}

__device__ void send(uint32_t to, uint4 v, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
               : "memory");
}

#endif

// The same without a barrier for all: a word counts its bytes on the barrier of the block that it goes to. Two boxes
// and two barriers are enough, for the reason given at marked_data.
__global__ void cluster_async(Memory m, int) {
#ifdef FUSED_RNN_CLUSTERS
  __shared__ alignas(16) uint4 box[2][kLargestCluster * kWords];  // [exchange % 2, sender, word]
  __shared__ alignas(8) uint64_t barriers[2];
  const auto cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), words = cluster.num_blocks() * kWords, bytes = words * sizeof(uint4);
  if (threadIdx.x < 2) {
    init_barrier(&barriers[threadIdx.x]);
    expect_bytes(&barriers[threadIdx.x], bytes);
  }
  cluster.sync();
  for (unsigned i = 0; i < kExchanges; ++i) {
    uint64_t* const barrier = &barriers[i & 1];
    for (unsigned w = threadIdx.x; w < words; w += kThreads) {
      const unsigned peer = w / kWords;
      send(in_block(shared_address(&box[i & 1][rank * kWords + w % kWords]), peer), make_uint4(i, rank, w, i),
           in_block(shared_address(barrier), peer));
    }
    int spins = 0;
    while (!phase_ended(barrier, i >> 1 & 1) && ++spins < kSpins) {
    }
    unsigned trouble = spins == kSpins ? kLate : 0;
    if (!trouble)
      for (unsigned w = threadIdx.x; w < words; w += kThreads)
        trouble |= checked(box[i & 1][w].x == i && box[i & 1][w].y == w / kWords);
    if (!all_well(trouble, m)) break;
    if (threadIdx.x == 0) expect_bytes(barrier, bytes);
    __syncthreads();  // our next words let the peers send exchange i + 2: expect it before
  }
  cluster.sync();  // no block ends while another one may still send to it
#endif
}

// ---- The host ----

using Kernel = void (*)(Memory, int);

struct Launch {
  const char* what;
  Kernel kernel;
  int blocks, group;
  int cluster;  // 0 for none
  bool cooperative;
};

struct Device {
  Memory memory;
  size_t counter_bytes, word_bytes;
};

void say(const Launch& l, const char* format, double value) {
  printf("{\"what\": \"%s\", \"blocks\": %d, \"group\": %d, ", l.what, l.blocks, l.group);
  printf(format, value);
  printf("}\n");
  fflush(stdout);
}

void refuse(const Launch& l, cudaError_t error) {
  printf("{\"what\": \"%s\", \"blocks\": %d, \"group\": %d, \"refused\": \"%s\"}\n", l.what, l.blocks, l.group,
         cudaGetErrorString(error));
  fflush(stdout);
  cudaGetLastError();
}

struct Config {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};

  explicit Config(const Launch& l) {
    config.gridDim = dim3(l.blocks);
    config.blockDim = dim3(kThreads);
    config.attrs = attributes;
    if (l.cluster) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeClusterDimension;
      a.val.clusterDim.x = l.cluster;
      a.val.clusterDim.y = a.val.clusterDim.z = 1;
    }
    if (l.cooperative) {
      cudaLaunchAttribute& a = attributes[config.numAttrs++];
      a.id = cudaLaunchAttributeCooperative;
      a.val.cooperative = 1;
    }
    if (l.cluster > 8) cudaFuncSetAttribute(l.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
};

cudaError_t timed_launch(const Launch& l, const Device& d, cudaEvent_t start, cudaEvent_t end, float* milliseconds) {
  cudaMemset(d.memory.counters, 0, d.counter_bytes);
  cudaMemset(d.memory.words, 0xff, d.word_bytes);
  const Config c(l);
  cudaEventRecord(start);
  cudaError_t error = cudaLaunchKernelEx(&c.config, l.kernel, d.memory, l.group);
  if (error == cudaSuccess) error = cudaEventRecord(end);
  if (error == cudaSuccess) error = cudaEventSynchronize(end);
  return error == cudaSuccess ? cudaEventElapsedTime(milliseconds, start, end) : error;
}

void measure(const Launch& l, const Device& d) {
  cudaEvent_t start, end;
  cudaEventCreate(&start);
  cudaEventCreate(&end);
  cudaMemset(d.memory.trouble, 0, sizeof(unsigned));
  float best = 1e30f;
  unsigned trouble = 0;
  cudaError_t error = cudaSuccess;
  for (int k = 0; k < kLaunches && error == cudaSuccess && !trouble; ++k) {
    float milliseconds = 0;
    error = timed_launch(l, d, start, end, &milliseconds);
    if (error == cudaSuccess) error = cudaMemcpy(&trouble, d.memory.trouble, sizeof trouble, cudaMemcpyDeviceToHost);
    if (k > 0) best = std::min(best, milliseconds);
  }
  if (error != cudaSuccess)
    refuse(l, error);
  else if (trouble)
    say(l, trouble & kLate ? "\"stuck_after_spins\": %.0f" : "\"wrong_data\": %.0f", kSpins);
  else
    say(l, "\"us\": %.4f", best * 1e3 / kExchanges);
  cudaEventDestroy(start);
  cudaEventDestroy(end);
}

int clusters_that_fit(const Launch& l) {
  int clusters = 0;
  const Config c(l);
  return cudaOccupancyMaxActiveClusters(&clusters, l.kernel, &c.config) == cudaSuccess ? clusters : 0;
}

bool has_cluster_code() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, cluster_push) == cudaSuccess && attributes.binaryVersion >= 90;
}

void measure_clusters(const Device& d) {
  for (int size : {2, 4, 8, 16}) {
    const int fit = clusters_that_fit({"", cluster_push, size, size, size, false});
    say({"clusters that fit at once", cluster_push, fit * size, size, size, false}, "\"clusters\": %.0f", fit);
    if (!fit) {
      cudaGetLastError();
      continue;
    }
    std::vector<int> counts{1};  // clusters in the launch: alone, and with as many beside it as fit
    if (fit > 1) counts.push_back(fit);
    for (int count : counts) {
      const int blocks = count * size;
      measure({"cluster barrier", cluster_barrier, blocks, size, size, false}, d);
      measure({"cluster push 128 B + barrier", cluster_push, blocks, size, size, false}, d);
      measure({"cluster st.async 128 B + mbarrier", cluster_async, blocks, size, size, false}, d);
    }
    measure({"cluster barrier, cooperative launch", cluster_barrier, fit * size, size, size, true}, d);
  }
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) {
    fprintf(stderr, "exchange needs an NVIDIA GPU: %s\n", cudaGetErrorString(error));
    return 2;
  }
  const int sms = properties.multiProcessorCount;
  Device d;
  d.counter_bytes = size_t(sms) * kCounterStride * sizeof(unsigned);
  d.word_bytes = size_t(2) * sms * kWords * sizeof(uint4);
  if (cudaMalloc(&d.memory.counters, d.counter_bytes) || cudaMalloc(&d.memory.words, d.word_bytes) ||
      cudaMalloc(&d.memory.trouble, sizeof(unsigned)))
    return 1;
  printf("{\"device\": \"%s\", \"sms\": %d, \"exchanges\": %d, \"threads\": %d}\n", properties.name, sms, kExchanges,
         kThreads);
  measure({"grid barrier", grid_barrier, sms, sms, 0, true}, d);
  for (int group : {2, 8, 16, 32, 64, sms}) {
    if (group > sms) continue;
    const int blocks = sms / group * group;  // a cooperative launch, because all blocks of a group must be resident
    measure({"counter barrier", counter_barrier, blocks, group, 0, true}, d);
    measure({"marked data 128 B", marked_data, blocks, group, 0, true}, d);
  }
  if (has_cluster_code())
    measure_clusters(d);
  else
    printf("{\"what\": \"clusters\", \"refused\": \"no code for compute capability 9.0 or later\"}\n");
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
