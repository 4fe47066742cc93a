// One small kernel for each primitive of csrc/cuda/device.cuh and the headers over it. The program writes what they
// give to the file that its argument names, a line each: a name and words in hexadecimal. Built by nvcc for a GPU it
// must write the same; sums of products are of small integers and so exact. What needs capability 9.0 is left out on
// older devices.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/cuda/async_copy.cuh"
#include "../../csrc/cuda/between_blocks.cuh"
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/matrix.cuh"
#include "../../csrc/cuda/numbers.cuh"
#include "../../csrc/cuda/predicated.cuh"

namespace fused_rnn {
namespace {

constexpr unsigned kLanes = 32;

struct Args {
  const uint32_t* in;
  uint32_t* out;
  unsigned* counter;
};

// ---- Matrices ----

FUSED_RNN_DEVICE float left(int row, int k) { return float((7 * row + 3 * k) % 11 - 5); }
FUSED_RNN_DEVICE float right(int k, int column) { return float((5 * k + 2 * column) % 7 - 3); }
FUSED_RNN_DEVICE float initial(int row, int column) { return float(row - column); }

FUSED_RNN_DEVICE void load_sums(float (&d)[4]) {
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) d[i] = initial(lane / 4 + i / 2 * 8, 2 * (lane % 4) + i % 2);
}
FUSED_RNN_DEVICE void store_sums(uint32_t* out, const float (&d)[4]) {
  const int lane = threadIdx.x;
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = bit_cast<uint32_t>(d[i]);
}
template <class Number>
FUSED_RNN_DEVICE uint32_t pair(float low, float high) {
  return uint32_t(from_float<Number>(low).bits) | uint32_t(from_float<Number>(high).bits) << 16;
}

template <class Number>
FUSED_RNN_KERNEL void mma_halves(const __grid_constant__ Args a) {
  const int row = threadIdx.x / 4, k = 2 * (threadIdx.x % 4);
  float d[4];
  uint32_t l[4], r[2];
  load_sums(d);
  for (int i = 0; i < 4; ++i) {
    const int at_row = row + i % 2 * 8, at_k = k + i / 2 * 8;
    l[i] = pair<Number>(left(at_row, at_k), left(at_row, at_k + 1));
  }
  for (int i = 0; i < 2; ++i) r[i] = pair<Number>(right(k + 8 * i, row), right(k + 8 * i + 1, row));
  mma_if(true, d, l, r, Number());
  mma_if(false, d, l, r, Number());
  store_sums(a.out, d);
}

// The low bits are set: they must not count.
FUSED_RNN_KERNEL void mma_tf32_low_bits(const __grid_constant__ Args a) {
  constexpr uint32_t kLowBits = 0x1fff;
  const int row = threadIdx.x / 4, k = threadIdx.x % 4;
  float d[4];
  uint32_t l[4], r[2];
  load_sums(d);
  for (int i = 0; i < 4; ++i) l[i] = bit_cast<uint32_t>(left(row + i % 2 * 8, k + i / 2 * 4)) | kLowBits;
  for (int i = 0; i < 2; ++i) r[i] = bit_cast<uint32_t>(right(k + 4 * i, row)) | kLowBits;
  mma_tf32_if(true, d, l, r);
  mma_tf32_if(false, d, l, r);
  store_sums(a.out, d);
}

FUSED_RNN_KERNEL void transpose(const __grid_constant__ Args a) {
  const uint32_t lane = threadIdx.x;
  a.out[lane] = transpose_matrix(2 * lane | (2 * lane + 1) << 16);
}

// ---- Warps ----

FUSED_RNN_KERNEL void warp_exchange(const __grid_constant__ Args a) {
  const int lane = threadIdx.x, value = 100 + lane;
  const uint32_t results[] = {uint32_t(shuffle_xor(value, 1)),
                              bit_cast<uint32_t>(shuffle_xor(float(value), 21)),
                              shuffle(uint32_t(value), 5),
                              shuffle(uint32_t(value), lane + 3, 8),
                              shuffle(uint32_t(value), lane / 2, 16),
                              ballot(lane % 3 == 0)};
  for (int i = 0; i < 6; ++i) a.out[i * kLanes + lane] = results[i];
}

// ---- Asynchronous copies ----

// Lane l copies l % 17 bytes. Two groups: the first one is waited for alone.
FUSED_RNN_KERNEL void cp_async(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory);  // [2, lanes, 4]
  const int at = 4 * int(threadIdx.x);
  cp_async16(words + at, a.in + at, int(threadIdx.x % 17));
  cp_async_commit();
  cp_async16(words + 4 * kLanes + at, a.in + at);
  cp_async_commit();
  cp_async_wait<1>("first");
  for (int i = 0; i < 4; ++i) a.out[at + i] = words[at + i];
  cp_async_wait<0>("second");
  block_barrier("copied");
  for (int i = 0; i < 4; ++i) a.out[4 * kLanes + at + i] = words[4 * kLanes + (at + i + 4) % (4 * kLanes)];
}

// A pipeline of two buffers: 6 chunks of 64 words.
FUSED_RNN_KERNEL void bulk_pipeline(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  constexpr int kChunks = 6, kWords = 64;
  uint32_t* const buffers = reinterpret_cast<uint32_t*>(memory);
  uint64_t* const full = reinterpret_cast<uint64_t*>(memory + 2 * kWords * 4);
  const auto order = [&](int chunk) {
    if (threadIdx.x != 0 || chunk >= kChunks) return;
    mbarrier_expect(full + chunk % 2, kWords * 4);
    bulk_copy(buffers + chunk % 2 * kWords, a.in + chunk * kWords, kWords * 4, full + chunk % 2);
  };
  if (threadIdx.x == 0)
    for (int i = 0; i < 2; ++i) mbarrier_init(full + i, 1);
  block_barrier("initialised");
  order(0);
  order(1);
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    mbarrier_wait(full + chunk % 2, unsigned(chunk / 2), "full");
    a.out[chunk * kWords + threadIdx.x] = buffers[chunk % 2 * kWords + (threadIdx.x ^ 1)];
    block_barrier("empty");
    order(chunk + 2);
  }
}

// Every thread arrives in every phase.
FUSED_RNN_KERNEL void arrivals(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(memory);
  uint32_t* const words = reinterpret_cast<uint32_t*>(memory + 16);  // [2, lanes]
  if (threadIdx.x == 0) mbarrier_init(barrier, blockDim.x);
  block_barrier("initialised");
  uint32_t value = threadIdx.x;
  for (unsigned phase = 0; phase < 4; ++phase) {
    words[phase % 2 * kLanes + threadIdx.x] = value;
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, phase, "arrived");
    value += words[phase % 2 * kLanes + (threadIdx.x + 1) % kLanes];
  }
  a.out[threadIdx.x] = value;
}

// ---- Clusters ----

FUSED_RNN_KERNEL void cluster(const __grid_constant__ Args a) {
  FUSED_RNN_SHARED_MEMORY(memory);
  constexpr unsigned kBlocks = 4, kResults = 12;
  uint32_t* const own = reinterpret_cast<uint32_t*>(memory);                // [lanes], read by others
  uint32_t* const got = own + kLanes;                                       // [lanes], written by others
  uint4* const quads = reinterpret_cast<uint4*>(got + kLanes);              // [3, lanes]: own, written, written later
  uint32_t* const later = reinterpret_cast<uint32_t*>(quads + 3 * kLanes);  // [lanes], written later
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(later + kLanes);
  const unsigned rank = cluster_rank(), next = (rank + 1) % kBlocks, lane = threadIdx.x;
  const unsigned value = 1000 * blockIdx.x + lane;
  own[lane] = value;
  quads[lane] = make_uint4(value, value + 100, value + 200, value + 300);
  if (lane == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_expect(barrier, kLanes * 20);
  }
  cluster_barrier("ready");
  store_cluster(got + lane, next, value + 1);
  store_cluster(quads + kLanes + lane, next, make_uint4(value + 1, value + 2, value + 3, value + 4));
  store_async_cluster(later + lane, next, value + 5, barrier);
  store_async_cluster(quads + 2 * kLanes + lane, next, make_uint4(value + 6, value + 7, value + 8, value + 9), barrier);
  const uint32_t loaded = load_cluster(own + lane, next);
  const uint4 loaded_quad = load_cluster(quads + lane, next);
  mbarrier_wait(barrier, 0, "later");
  cluster_barrier("done");
  const uint4 stored = quads[kLanes + lane], async = quads[2 * kLanes + lane];
  const uint32_t results[kResults] = {rank,     loaded,      loaded_quad.x, loaded_quad.w, got[lane], stored.x,
                                      stored.w, later[lane], async.x,       async.y,       async.z,   async.w};
  for (unsigned i = 0; i < kResults; ++i) a.out[(blockIdx.x * kResults + i) * kLanes + lane] = results[i];
}

// ---- Grids ----

// Round by round each block passes on what its neighbour wrote: one word, and four at once.
FUSED_RNN_KERNEL void grid(const __grid_constant__ Args a) {
  const unsigned blocks = gridDim.x, lane = threadIdx.x, neighbour = (blockIdx.x + 1) % blocks;
  uint32_t value = 1000 * blockIdx.x + lane;
  const auto quads = [&](unsigned round) { return reinterpret_cast<uint4*>(a.out + 1024) + round * blocks * kLanes; };
  for (unsigned round = 0; round < 3; ++round) {
    uint32_t* const words = a.out + round * blocks * kLanes;
    store_relaxed(words + blockIdx.x * kLanes + lane, value);
    store_relaxed(quads(round) + blockIdx.x * kLanes + lane, make_uint4(value, value + 1, value + 2, value + 3));
    if (!grid_barrier(a.counter, (round + 1) * blocks, "round")) return;
    value = load_relaxed(words + neighbour * kLanes + lane) + load_relaxed(quads(round) + neighbour * kLanes + lane).w;
  }
  a.out[3 * blocks * kLanes + blockIdx.x * kLanes + lane] = value;
}

// One block hands a word to the other by a fence and a relaxed flag, and gets one back by release and acquire, twice.
FUSED_RNN_KERNEL void message(const __grid_constant__ Args a) {
  unsigned* const flag = a.counter;
  if (blockIdx.x == 0) {
    a.out[0] = 42;
    fence("published");
    store_relaxed(flag, 1u);
    while (load_acquire(flag, "answer") < 3) {
    }
    a.out[2] = a.out[1] + 1;
    while (load_acquire(flag, "second answer") != 7) {
    }
    a.out[4] = a.out[3] + 1;
  } else {
    while (load_relaxed(flag) == 0) {
    }
    fence("observed");
    a.out[1] = a.out[0] + 1;
    add_release(flag, 2, "answered");
    a.out[3] = a.out[0] + 2;
    store_release(flag, 7, "answered again");
  }
}

// ---- Numbers ----

constexpr int kNumbers = 4096, kKinds = 6;

FUSED_RNN_KERNEL void convert(const __grid_constant__ Args a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = bit_cast<float>(a.in[i]);
  const auto bfloat16 = from_float<BFloat16>(value);
  const auto float16 = from_float<Float16>(value);
  // Which NaN it is depends on the device.
  const auto bits = [](float f) { return f == f ? bit_cast<uint32_t>(f) : 0x7fffffffu; };
  const uint32_t results[kKinds] = {value == value ? uint32_t(bfloat16.bits) : 0x7fffu,
                                    value == value ? uint32_t(float16.bits) : 0x7fffu,
                                    bits(to_float(bfloat16)),
                                    bits(to_float(float16)),
                                    bits(to_float(bit_cast<Float16>(uint16_t(a.in[i])))),
                                    bits(round_to_tf32(value))};
  for (int kind = 0; kind < kKinds; ++kind) a.out[kind * kNumbers + i] = results[kind];
}

// 1 where the reciprocal is within one unit in the last place: not the same bits on every device.
FUSED_RNN_KERNEL void reciprocals(const __grid_constant__ Args a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = bit_cast<float>(a.in[i]), got = reciprocal(value), wanted = 1.0f / value;
  const bool is_normal = fabsf(value) >= 0x1p-126f && fabsf(wanted) >= 0x1p-126f && fabsf(wanted) < 0x1p127f;
  a.out[i] = !is_normal || fabsf(got - wanted) <= fabsf(wanted) * 0x1p-23f;
}

// The same of 2^value, two units.
FUSED_RNN_KERNEL void powers(const __grid_constant__ Args a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = bit_cast<float>(a.in[i]), got = exp2_approximate(value), wanted = exp2f(value);
  const bool is_normal = wanted >= 0x1p-126f && wanted < 0x1p127f;
  a.out[i] = !is_normal || fabsf(got - wanted) <= wanted * 0x1p-22f;
}

// Words and their halves, and where nothing is loaded or stored what was there.
FUSED_RNN_KERNEL void conditions(const __grid_constant__ Args a) {
  const int lane = threadIdx.x;
  uint32_t word = 0x11111111u, half = 0x22222222u;
  load_if(lane % 2 == 0, reinterpret_cast<const float*>(a.in) + lane, word);
  load_if(lane % 3 == 0, reinterpret_cast<const BFloat16*>(a.in) + lane, half);
  store_if(true, reinterpret_cast<float*>(a.out) + lane, bit_cast<float>(word));
  store_if(lane % 5 != 0, reinterpret_cast<float*>(a.out) + lane, from_bits<float>(half & 0xffffu));
  store_if(true, reinterpret_cast<BFloat16*>(a.out + kLanes) + lane, from_bits<BFloat16>(half));
  store_if(lane % 7 == 0, reinterpret_cast<BFloat16*>(a.out + kLanes) + lane, from_bits<BFloat16>(word));
}

// ---- The program ----

#ifdef FUSED_RNN_EMULATOR
void* allocate(size_t bytes) { return std::malloc(bytes); }
void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void check(cudaError_t, const char*) {}
int capability() { return 90; }
#else
void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes), "allocating memory");
  return p;
}
// Waits for the kernels before it.
void copy(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying");
}
int capability() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "looking for a GPU");
  return 10 * properties.major + properties.minor;
}
#endif

constexpr size_t kMaxWords = size_t(kNumbers) * kKinds;

class Program {
 public:
  explicit Program(const char* path)
      : file_(std::fopen(path, "w")),
        host_(kMaxWords),
        in_(static_cast<uint32_t*>(allocate(kMaxWords * 4))),
        out_(static_cast<uint32_t*>(allocate(kMaxWords * 4))),
        counter_(static_cast<unsigned*>(allocate(sizeof(unsigned)))) {
    if (!file_) std::abort();
  }

  // What the kernels after it read.
  void set_in(const std::vector<uint32_t>& words) { copy(in_, words.data(), words.size() * 4); }

  void run(const char* name, void (*kernel)(Args), LaunchConfig config, size_t words) {
    const std::vector<uint32_t> zeros(kMaxWords);
    copy(out_, zeros.data(), kMaxWords * 4);
    copy(counter_, zeros.data(), sizeof(unsigned));
    check(launch(kernel, config, Args{in_, out_, counter_}), name);
#ifndef FUSED_RNN_EMULATOR
    check(cudaDeviceSynchronize(), name);
#endif
    host_.resize(words);
    copy(host_.data(), out_, words * 4);
    write(name, host_);
  }

  void write(const char* name, const std::vector<uint32_t>& words) {
    std::fprintf(file_, "%s", name);
    for (const uint32_t word : words) std::fprintf(file_, " %08x", unsigned(word));
    std::fprintf(file_, "\n");
  }

 private:
  FILE* file_;
  std::vector<uint32_t> host_;
  uint32_t *in_, *out_;
  unsigned* counter_;
};

// Numbers at and around what rounds in a special way, and random ones.
std::vector<uint32_t> special_numbers() {
  std::vector<uint32_t> numbers(kNumbers);
  uint32_t random = 1;
  for (int i = 0; i < kNumbers; ++i) {
    random = random * 1664525u + 1013904223u;
    const uint32_t ties[] = {0x00008000u, 0x00001000u, 0x00010000u | 0x8000u, 0x00002000u | 0x1000u};
    const uint32_t specials[] = {0u,          0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u,
                                 0x00000001u, 0x007fffffu, 0x00800000u, 0x7f7fffffu, 0x477fefffu, 0x477ff000u,
                                 0x33000000u, 0x33000001u, 0x38800000u, 0x387fffffu};
    if (i < 16)
      numbers[i] = specials[i];
    else if (i < 1024)  // halfway between two BFloat16, TF32 or Float16, and next to it
      numbers[i] = ((random & 0xffff0000u) | ties[i % 4]) + uint32_t(i / 4 % 3) - 1;
    else if (i < 2048)  // of the size of Float16, subnormal ones too
      numbers[i] = (0x32000000u + random % 0x15900000u) | (random & 1) << 31;
    else
      numbers[i] = random;
  }
  return numbers;
}

int run_all(const char* path) {
  Program program(path);
  const LaunchConfig warp = {dim3(1), dim3(kLanes), 1024, nullptr, false, 0};
  std::vector<uint32_t> counted(1024);
  for (unsigned i = 0; i < counted.size(); ++i) counted[i] = 0x01020304u * (i + 1);
  program.set_in(counted);
  program.run("mma_float16", mma_halves<Float16>, warp, 128);
  if (capability() >= 80) {
    program.run("mma_bfloat16", mma_halves<BFloat16>, warp, 128);
    program.run("mma_tf32", mma_tf32_low_bits, warp, 128);
  }
  program.run("transpose", transpose, warp, kLanes);
  program.run("warp_exchange", warp_exchange, warp, 6 * kLanes);
  program.run("conditions", conditions, warp, kLanes + kLanes / 2);
  program.run("cp_async", cp_async, warp, 8 * kLanes);
  if (capability() >= 90) {
    program.run("bulk_pipeline", bulk_pipeline, {dim3(1), dim3(64), 1024, nullptr, false, 0}, 6 * 64);
    program.run("arrivals", arrivals, warp, kLanes);
    program.run("cluster", cluster, {dim3(8), dim3(kLanes), 4096, nullptr, false, 4}, 8 * 12 * kLanes);
  }
  program.run("grid", grid, {dim3(4), dim3(kLanes), 0, nullptr, true, 0}, 4 * 4 * kLanes);
  program.run("message", message, {dim3(2), dim3(1), 0, nullptr, true, 0}, 5);
  const std::vector<uint32_t> numbers = special_numbers();
  program.set_in(numbers);
  program.write("numbers", numbers);
  program.run("convert", convert, {dim3(kNumbers / 128), dim3(128), 0, nullptr, false, 0}, kKinds * kNumbers);
  program.run("reciprocals", reciprocals, {dim3(kNumbers / 128), dim3(128), 0, nullptr, false, 0}, kNumbers);
  program.run("powers", powers, {dim3(kNumbers / 128), dim3(128), 0, nullptr, false, 0}, kNumbers);
  return 0;
}

}  // namespace
}  // namespace fused_rnn

int main(int count, char** arguments) { return count == 2 ? fused_rnn::run_all(arguments[1]) : 2; }
