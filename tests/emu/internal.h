// What the emulator's own files share.
#pragma once

#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "race.h"

namespace emu {

constexpr int kWarpSize = 32;
constexpr int kNaN = 0xff;  // in every byte it makes a NaN of every type

struct Thread;

// A rendezvous of a fixed number of threads, again and again.
struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  const char* what = nullptr;  // those that have arrived are at
  Site site = "";
  bool all_ok = true, result = true;
  Thread* waiting = nullptr;
  race::Clock edges[2];  // by the generation's parity
};

// Operations of a whole warp: each lane hands in some bytes, the last one to come works on all of them. Two buffers, by
// the generation's parity: a lane may be back before a slower one has taken its result.
struct Exchange {
  static constexpr int kInBytes = 64, kOutBytes = 16;
  Barrier barrier;
  alignas(16) unsigned char in[2][kWarpSize][kInBytes];
  alignas(16) unsigned char out[2][kWarpSize][kOutBytes];
};

struct Warp {
  int size = 0, alive = 0;
  Barrier barrier;
  Exchange exchange;
};

struct Cluster;

struct Block {
  unsigned number = 0;
  int size = 0, alive = 0;
  unsigned char* shared = nullptr;
  Cluster* cluster = nullptr;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
};

// One block, without clusters. Clusters that run at the same time each have a place, which later ones take over.
struct Cluster {
  int size = 0, alive = 0;  // threads
  Barrier barrier;
  std::vector<Block> blocks;
};

struct CopyAsync {
  unsigned char* destination;
  const unsigned char* source;
  int valid_bytes, group;
  const void* pc;
};

struct Thread {
  Context context;
  Fiber fiber;
  Block* block = nullptr;
  Warp* warp = nullptr;
  Thread* next = nullptr;  // in a barrier's list
  const char* what = "";   // it waits for; empty: it can run
  Site site = "";
  bool has_ended = false;

  std::vector<CopyAsync> copies;
  int copy_group = 0;

  const void* polled = nullptr;  // the latest load of a flag
  uint32_t polled_value = 0;
  race::Agent agent;
};

// ---- launch.cpp ----

const Shape& shape();
// Where all threads stand.
std::string census();

// ---- scheduler.cpp ----

void begin_schedule(size_t max_threads, uint64_t seed);
// By the launching thread: runs the others until one ends with back_to_launcher. Throws what fails.
void run_threads();
[[noreturn]] void end_running(bool back_to_launcher);

Thread& self();
// Ends the launch, from any thread.
[[noreturn]] void fail(const std::string& message);
void make_ready(Thread& thread);
// Suspends the running thread until make_ready.
void wait_here(const char* what, Site site);
// Lets another thread run, if the schedule is a random one and wants to.
void yield();
// The same in a loop that waits for what another thread does; fails when all threads are in such loops.
void poll(const char* what, Site site);
// Something has happened that a polling thread may wait for.
void progress();
bool is_random();
uint64_t random_number();

// ---- synchronisation.cpp ----

void arrive(Barrier& barrier, int expected, const char* what, Site site, bool orders_memory);

// ---- async.cpp ----

void reset_async();
void check_copies_at_end(const Thread& thread);
void check_copies_at_end(const Block& block);

// ---- sites.cpp ----

void choose_mutant();
// Counts the call.
bool is_on(Site site);

}  // namespace emu
