// Kernels that are right until a test switches one of their synchronising calls off (EMU_MUTANT), and kernels that are
// wrong. The program runs the one that its argument names and prints `silent`, `wrong` if what it computed is wrong, or
// the emulator's message; then it shows that the emulator still works.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "../../csrc/cuda/async_copy.cuh"
#include "../../csrc/cuda/between_blocks.cuh"
#include "../../csrc/cuda/launch.cuh"

namespace fused_rnn {
namespace {

constexpr unsigned kThreads = 64, kWords = 4096;

struct Args {
  uint32_t* data;  // [kWords], each its own number at the start
  uint32_t* out;   // [kWords], zero; right kernels leave their own number in each word that they write
  unsigned* flag;  // zero
};

FUSED_RNN_DEVICE unsigned own() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- Right kernels. Each thread passes its number on and gets it back from whom it gave it to. ----

FUSED_RNN_KERNEL void shared_memory(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  const unsigned other = threadIdx.x ^ 33;
  words[other] = own();
  block_barrier("shared.written");
  const uint32_t passed = words[threadIdx.x];
  block_barrier("shared.read");
  words[other] = passed;
  block_barrier("shared.written_again");
  a.out[own()] = words[threadIdx.x];
}

FUSED_RNN_KERNEL void shared_memory_of_warps(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  words[threadIdx.x] = own();
  warp_barrier("warp.written");
  const uint32_t passed = words[threadIdx.x ^ 1];
  a.out[own()] = shuffle_xor(passed, 1);
}

FUSED_RNN_KERNEL void cluster_memory(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  words[threadIdx.x] = blockIdx.x;
  cluster_barrier("cluster.written");
  const unsigned next = load_cluster(words + threadIdx.x, (cluster_rank() + 1) % 4);
  cluster_barrier("cluster.read");
  a.out[own()] = (next + 3) % 4 * blockDim.x + threadIdx.x;
}

FUSED_RNN_KERNEL void grid_memory(const __grid_constant__ Args a) {
  const unsigned other = (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x;
  a.data[other] = other + 1;
  if (!grid_barrier(a.flag, gridDim.x, "grid")) return;
  a.out[own()] = a.data[own()] - 1;
}

FUSED_RNN_KERNEL void fences(const __grid_constant__ Args a) {
  if (blockIdx.x == 0) {
    a.data[threadIdx.x] = 1000 + threadIdx.x;
    block_barrier("fence.written");
    if (threadIdx.x == 0) {
      fence("fence.published");
      store_relaxed(a.flag, 1u);
    }
  } else {
    if (threadIdx.x == 0) {
      while (!load_relaxed(a.flag)) {
      }
      fence("fence.observed");
    }
    block_barrier("fence.waited");
    a.out[threadIdx.x] = a.data[threadIdx.x] - 1000;
  }
}

FUSED_RNN_KERNEL void release_and_acquire(const __grid_constant__ Args a) {
  if (blockIdx.x == 0) {
    a.data[threadIdx.x] = 1000 + threadIdx.x;
    add_release(a.flag, 1, "flag.released");
  } else {
    while (load_acquire(a.flag, "flag.acquired") < blockDim.x) {
    }
    a.out[threadIdx.x] = a.data[threadIdx.x ^ 1] - 1000 + (threadIdx.x % 2 ? 1 : -1);
  }
}

FUSED_RNN_KERNEL void copies(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  if (threadIdx.x < 16) cp_async16(words + 4 * threadIdx.x, a.data + 4 * threadIdx.x);
  cp_async_commit();
  cp_async_wait<0>("copy.landed");
  block_barrier("copy.published");
  a.out[own()] = words[threadIdx.x];
}

FUSED_RNN_KERNEL void bulk_copies(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory + kThreads * 4);
  if (threadIdx.x == 0) mbarrier_init(full, 1);
  block_barrier("bulk.initialised");
  for (unsigned i = 0; i < 3; ++i) {
    if (threadIdx.x == 0) {
      mbarrier_expect(full, kThreads * 4);
      bulk_copy(words, a.data + i * kThreads, kThreads * 4, full);
    }
    mbarrier_wait(full, i, "bulk.full");
    a.out[i * kThreads + threadIdx.x] = words[threadIdx.x];
    block_barrier("bulk.empty");
  }
}

FUSED_RNN_KERNEL void stores_into_cluster(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory + kThreads * 4);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_expect(full, kThreads * 4);
  }
  cluster_barrier("later.initialised");
  const unsigned next = (cluster_rank() + 1) % 4;
  store_async_cluster(words + threadIdx.x, next, next * blockDim.x + threadIdx.x, full);
  mbarrier_wait(full, 0, "later.full");
  a.out[own()] = words[threadIdx.x];  // no block has ended before: each waits for the stores of another one
}

// ---- Wrong kernels ----

FUSED_RNN_KERNEL void divergent_barrier(const __grid_constant__ Args a) {
  if (threadIdx.x < 32)
    block_barrier("divergent");
  else
    while (!load_acquire(a.flag, "never")) {
    }
}

FUSED_RNN_KERNEL void two_barriers(const __grid_constant__ Args) {
  if (threadIdx.x < 32)
    block_barrier("one");
  else
    block_barrier("other");
}

FUSED_RNN_KERNEL void early_end(const __grid_constant__ Args) {
  if (threadIdx.x == 3) return;
  block_barrier("late");
}

FUSED_RNN_KERNEL void missing_lanes(const __grid_constant__ Args a) {
  if (threadIdx.x % 32 < 16) a.out[own()] = shuffle_xor(own(), 1);
}

// The first blocks wait for one that cannot start before one of them has ended.
FUSED_RNN_KERNEL void absent_block(const __grid_constant__ Args a) {
  if (blockIdx.x == gridDim.x - 1) add_release(a.flag, 1, "came");
  while (!load_acquire(a.flag, "comes")) {
  }
}

FUSED_RNN_KERNEL void misaligned_copy(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  cp_async16(memory + 4, a.data);
}

FUSED_RNN_KERNEL void copy_past_the_end(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  cp_async16(memory + kThreads * 4, a.data);
}

FUSED_RNN_KERNEL void forgotten_bulk_copy(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory);
  if (threadIdx.x) return;
  mbarrier_init(full, 1);
  mbarrier_expect(full, 16);
  bulk_copy(memory + 16, a.data, 16, full);
}

FUSED_RNN_KERNEL void overwritten_mbarrier(const __grid_constant__ Args) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory);
  if (threadIdx.x) return;
  mbarrier_init(full, 1);
  *full = 0;
  mbarrier_arrive(full);
}

FUSED_RNN_KERNEL void too_many_arrivals(const __grid_constant__ Args) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory);
  if (threadIdx.x == 0) mbarrier_init(full, blockDim.x - 1);
  block_barrier("initialised");
  mbarrier_expect(full, 16);
}

FUSED_RNN_KERNEL void unwritten_shared_memory(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  const float value = reinterpret_cast<float*>(memory)[threadIdx.x];
  a.out[own()] = value == value ? own() : 0xffffffffu;
}

FUSED_RNN_KERNEL void short_shared_memory(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  reinterpret_cast<uint32_t*>(memory)[threadIdx.x + 1] = 0;
  a.out[own()] = own();
}

FUSED_RNN_KERNEL void write_past_the_end(const __grid_constant__ Args a) { a.out[kWords - blockDim.x + 1 + own()] = 0; }

// Neighbours' halves of one word do not race; the last write of them does.
FUSED_RNN_KERNEL void halves_of_words(const __grid_constant__ Args a) {
  reinterpret_cast<uint16_t*>(a.data)[threadIdx.x] = 0;
  a.out[own()] = own();
  if (threadIdx.x == 0) reinterpret_cast<uint16_t*>(a.data)[kThreads - 1] = 0;
}

// What is written between the fence and the flag is not published.
FUSED_RNN_KERNEL void late_write(const __grid_constant__ Args a) {
  if (blockIdx.x == 0) {
    fence("early");
    a.data[0] = 1;
    store_relaxed(a.flag, 1u);
  } else {
    while (!load_acquire(a.flag, "flag")) {
    }
    a.out[0] = a.data[0] - 1;
  }
}

FUSED_RNN_KERNEL void plain_flag(const __grid_constant__ Args a) {
  if (blockIdx.x == 0) {
    *a.flag = 1;
  } else {
    a.out[0] = load_acquire(a.flag, "flag") * 0;
  }
}

// Blocks that never run at the same time race too.
FUSED_RNN_KERNEL void same_word(const __grid_constant__ Args a) { a.data[threadIdx.x] = 0; }

// ---- The program ----

struct Run {
  const char* name;
  void (*kernel)(Args);
  LaunchConfig config;
};

LaunchConfig blocks(unsigned count, bool cooperative = false, unsigned cluster = 0) {
  return {dim3(count), dim3(kThreads), kThreads * 4, nullptr, cooperative, cluster};
}
LaunchConfig with_shared(size_t bytes) { return {dim3(1), dim3(kThreads), bytes, nullptr, false, 0}; }
LaunchConfig with_threads(unsigned count) { return {dim3(1), dim3(count), 0, nullptr, false, 0}; }

const Run kRuns[] = {
    {"shared", shared_memory, blocks(2)},
    {"shared_of_many", shared_memory, {dim3(3), dim3(1024), 4096, nullptr, false, 0}},
    {"warp", shared_memory_of_warps, blocks(2)},
    {"cluster", cluster_memory, blocks(4, false, 4)},
    {"grid", grid_memory, blocks(4, true)},
    {"fence", fences, blocks(2)},
    {"flag", release_and_acquire, blocks(2)},
    {"copy", copies, blocks(1)},
    {"bulk", bulk_copies, with_shared(kThreads * 4 + 8)},
    {"later", stores_into_cluster, {dim3(4), dim3(kThreads), kThreads * 4 + 8, nullptr, false, 4}},
    {"divergent_barrier", divergent_barrier, blocks(1)},
    {"two_barriers", two_barriers, blocks(1)},
    {"early_end", early_end, blocks(1)},
    {"missing_lanes", missing_lanes, blocks(1)},
    {"half_a_warp", missing_lanes, with_threads(16)},
    {"absent_block", absent_block, blocks(8)},
    {"not_cooperative", grid_memory, blocks(4)},
    {"misaligned_copy", misaligned_copy, blocks(1)},
    {"copy_past_the_end", copy_past_the_end, blocks(1)},
    {"forgotten_bulk_copy", forgotten_bulk_copy, blocks(1)},
    {"overwritten_mbarrier", overwritten_mbarrier, blocks(1)},
    {"too_many_arrivals", too_many_arrivals, blocks(1)},
    {"unwritten_shared_memory", unwritten_shared_memory, blocks(1)},
    {"short_shared_memory", short_shared_memory, blocks(1)},
    {"write_past_the_end", write_past_the_end, blocks(1)},
    {"halves_of_words", halves_of_words, blocks(1)},
    {"late_write", late_write, {dim3(2), dim3(1), 0, nullptr, false, 0}},
    {"plain_flag", plain_flag, {dim3(2), dim3(1), 0, nullptr, false, 0}},
    {"same_word", same_word, blocks(64)},
    {"too_much_shared_memory", shared_memory, with_shared(227 * 1024 + 1)},
    {"too_many_threads", shared_memory, with_threads(1025)},
    {"broken_cluster", cluster_memory, blocks(6, false, 4)},
};

// Whether what the kernel wrote is right.
bool is_right(const Run& run) {
  uint32_t* const data = static_cast<uint32_t*>(std::malloc(kWords * 4));
  uint32_t* const out = static_cast<uint32_t*>(std::calloc(kWords, 4));
  unsigned flag = 0;
  for (unsigned i = 0; i < kWords; ++i) data[i] = i;
  launch(run.kernel, run.config, Args{data, out, &flag});
  bool right = true;
  for (unsigned i = 0; i < kWords; ++i) right &= out[i] == 0 || out[i] == i;
  std::free(data);
  std::free(out);
  return right;
}

int run(const char* name) {
  for (const Run& run : kRuns) {
    if (std::strcmp(run.name, name)) continue;
    try {
      std::puts(is_right(run) ? "silent" : "wrong");
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
    }
    for (const emu::SiteCalls& site : emu::sites()) std::printf("site %s %ld\n", site.name.c_str(), site.calls);
    unsetenv("EMU_MUTANT");
    if (is_right(kRuns[0])) std::puts("usable");
    return 0;
  }
  return 2;
}

}  // namespace
}  // namespace fused_rnn

int main(int count, char** arguments) { return count == 2 ? fused_rnn::run(arguments[1]) : 2; }
