// Launches, from the first thread of a grid to the last.

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "internal.h"

// AddressSanitizer's, in a process that has it.
extern "C" void __asan_set_error_report_callback(void (*callback)(const char* text)) __attribute__((weak));

namespace emu {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kMaxShared = 227 * 1024;
constexpr unsigned kMaxThreads = 1024, kMaxCluster = 16;

// What outlives a launch
std::mutex mutex;
unsigned char* stacks;
size_t stack_count;
std::string address_error;  // AddressSanitizer's report

// The launch that runs
Shape launch_shape;
Body body;
const void* body_argument;
std::vector<Cluster> places;
unsigned next_cluster, cluster_count;
Cluster* ended_cluster;
size_t live;  // threads

// ---- A thread's life ----

[[noreturn]] void end_thread() {
  Thread& thread = self();
  Block& block = *thread.block;
  Cluster& cluster = *block.cluster;
  if (thread.fiber.overflowed()) fail("a thread has overrun the emulator's stack of 128 KiB");
  check_copies_at_end(thread);
  if (block.barrier.arrived || cluster.barrier.arrived || thread.warp->barrier.arrived ||
      thread.warp->exchange.barrier.arrived)
    fail("a thread ends while others wait for it");
  thread.has_ended = true;
  --live;
  --thread.warp->alive;
  --cluster.alive;
  if (--block.alive == 0) check_copies_at_end(block);
  progress();
  if (cluster.alive == 0) ended_cluster = &cluster;
  end_running(cluster.alive == 0);
}

void run_thread() {
  Fiber::entered();
  body(body_argument);
  end_thread();
}

// ---- Blocks ----

uint3 index_in(dim3 size, unsigned i) { return {i % size.x, i / size.x % size.y, i / (size.x * size.y)}; }

unsigned volume(dim3 size) { return size.x * size.y * size.z; }

void free_shared(Block& block) {
  std::free(block.shared);
  block.shared = nullptr;
}

// Exactly as large as asked for, so that AddressSanitizer sees its end.
void allocate_shared(Block& block) {
  void* shared = nullptr;
  if (posix_memalign(&shared, 1024, std::max<size_t>(launch_shape.shared_bytes, 1))) fail("no memory");
  block.shared = static_cast<unsigned char*>(shared);
  std::memset(shared, kNaN, launch_shape.shared_bytes);
  race::forget(shared, launch_shape.shared_bytes);
}

void start_thread(Thread& thread, Block& block, unsigned t, unsigned rank, unsigned char* stack) {
  thread.context = {index_in(launch_shape.block, t),
                    index_in(launch_shape.grid, block.number),
                    launch_shape.block,
                    launch_shape.grid,
                    t % kWarpSize,
                    rank,
                    block.shared};
  thread.block = &block;
  thread.warp = &block.warps[t / kWarpSize];
  thread.has_ended = false;
  thread.copies = {};
  thread.copy_group = 0;
  thread.polled = nullptr;
  thread.agent.begin(race::kFirstBlock + block.number, t);
  thread.fiber.prepare(stack, kStackBytes, run_thread);
  ++block.alive;
  ++block.cluster->alive;
  ++thread.warp->alive;
  ++live;
  make_ready(thread);
}

void start_cluster(Cluster& cluster, unsigned number) {
  const unsigned threads = volume(launch_shape.block);
  cluster.barrier = Barrier();
  cluster.size = int(threads * cluster.blocks.size());
  for (unsigned rank = 0; rank < cluster.blocks.size(); ++rank) {
    Block& block = cluster.blocks[rank];
    block.number = number * unsigned(cluster.blocks.size()) + rank;
    block.cluster = &cluster;
    block.size = int(threads);
    block.barrier = Barrier();
    for (unsigned w = 0; w < block.warps.size(); ++w) {
      block.warps[w].size = int(std::min<unsigned>(threads - w * kWarpSize, kWarpSize));
      block.warps[w].alive = 0;
      block.warps[w].barrier = block.warps[w].exchange.barrier = Barrier();
    }
    free_shared(block);
    allocate_shared(block);
    const size_t first_stack = (size_t(&cluster - places.data()) * cluster.blocks.size() + rank) * threads;
    for (unsigned t = 0; t < threads; ++t)
      start_thread(block.threads[t], block, t, rank, stacks + (first_stack + t) * kStackBytes);
  }
}

// ---- A launch ----

void reserve_stacks(size_t count) {
  if (count <= stack_count) return;
  if (stacks) {
    release_stack(stacks, stack_count * kStackBytes);
    munmap(stacks, stack_count * kStackBytes);
  }
  void* const memory =
      mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  stack_count = memory == MAP_FAILED ? 0 : count;
  stacks = stack_count ? static_cast<unsigned char*>(memory) : nullptr;
  if (!stacks) fail("no memory for the stacks of " + std::to_string(count) + " threads");
}

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

void check(const Shape& shape) {
  const unsigned blocks = volume(shape.grid), threads = volume(shape.block);
  const unsigned cluster = std::max(shape.cluster, 1u);
  if (!blocks || !threads) fail("a launch of no threads");
  if (threads > kMaxThreads) fail("a launch of " + std::to_string(threads) + " threads a block; 1024 are possible");
  if (shape.shared_bytes > kMaxShared)
    fail("a launch with " + std::to_string(shape.shared_bytes) + " bytes of shared memory; 232448 are possible");
  if (cluster > kMaxCluster || shape.grid.x % cluster)
    fail("a grid of " + std::to_string(shape.grid.x) + " blocks in clusters of " + std::to_string(cluster));
}

void prepare(const Shape& shape) {
  check(shape);
  launch_shape = shape;
  const unsigned blocks = volume(shape.grid), threads = volume(shape.block), cluster = std::max(shape.cluster, 1u);
  const uint64_t resident = number_from_environment("EMU_RESIDENT", shape.cooperative ? blocks : 4);
  cluster_count = blocks / cluster;
  const size_t place_count = std::min<uint64_t>(std::max<uint64_t>(resident / cluster, 1), cluster_count);
  const size_t resident_threads = place_count * cluster * threads;

  places = std::vector<Cluster>(place_count);
  for (Cluster& place : places) {
    place.blocks = std::vector<Block>(cluster);
    for (Block& block : place.blocks) {
      block.warps = std::vector<Warp>((threads + kWarpSize - 1) / kWarpSize);
      block.threads = std::vector<Thread>(threads);
    }
  }
  reserve_stacks(resident_threads);
  begin_schedule(resident_threads, number_from_environment("EMU_SEED", 0));
  live = 0;
  next_cluster = 0;
  choose_mutant();

  if (__asan_set_error_report_callback)
    __asan_set_error_report_callback([](const char* text) { address_error = text; });
  reset_async();
  race::begin_launch();
  race::ignore(stacks, stack_count * kStackBytes);
}

void run_grid() {
  for (Cluster& place : places) start_cluster(place, next_cluster++);
  while (live) {
    ended_cluster = nullptr;
    run_threads();
    if (ended_cluster && next_cluster < cluster_count) start_cluster(*ended_cluster, next_cluster++);
  }
}

struct CleanUp {
  ~CleanUp() {
    for (Cluster& cluster : places)
      for (Block& block : cluster.blocks) free_shared(block);
    places.clear();
    current = nullptr;
    race::end_launch();
  }
};

std::string place_of(const Thread& thread) {
  const std::string name = std::string(thread.site.name) + thread.site.suffix;
  return std::string(thread.what) + (name.empty() ? "" : " " + name) + " in block " +
         std::to_string(thread.block->number);
}

}  // namespace

const Shape& shape() { return launch_shape; }

std::string census() {
  constexpr size_t kMaxLines = 12;
  std::map<std::string, int> threads;
  for (const Cluster& cluster : places)
    for (const Block& block : cluster.blocks)
      for (const Thread& thread : block.threads)
        if (thread.block && !thread.has_ended)
          ++threads[*thread.what ? place_of(thread) : "able to run in block " + std::to_string(block.number)];
  std::string text;
  size_t lines = 0;
  for (const auto& [place, count] : threads) {
    if (++lines > kMaxLines) return text + "\n  and " + std::to_string(threads.size() - kMaxLines) + " more places";
    text += "\n  " + std::to_string(count) + " x " + place;
  }
  return text;
}

void run(const Shape& shape, Body kernel, const void* argument) {
  const std::lock_guard<std::mutex> lock(mutex);
  try {
    const CleanUp clean_up;
    prepare(shape);
    body = kernel;
    body_argument = argument;
    run_grid();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(error.what() + std::exchange(address_error, ""));
  }
  if (!address_error.empty()) throw std::runtime_error(std::exchange(address_error, ""));
}

}  // namespace emu
