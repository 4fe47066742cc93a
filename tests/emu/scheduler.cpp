// Who runs when.

#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "internal.h"

namespace emu {

Context* current;

namespace {

Fiber launcher;
Thread* running;  // null: the launcher itself
bool has_failed;
std::string error, standing;  // what failed, and where the threads stood

// The threads that can run, in a ring that never grows.
std::vector<Thread*> ready;
size_t ready_head, ready_count;

uint64_t seed, random_state;
uint64_t polls;  // since anything has happened
uint64_t clock_now;
bool clock_is_read;  // by a polling thread, since anything has happened

Thread*& ready_at(size_t i) { return ready[(ready_head + i) % ready.size()]; }

void push_ready(Thread& thread) { ready_at(ready_count++) = &thread; }

// In an even random schedule, which block, or with half the seeds which warp, runs ahead of which.
uint64_t priority(const Thread& thread) {
  const uint64_t warp = seed & 2 ? thread.context.thread_index.x / kWarpSize : 0;
  const uint64_t mixed = (seed * 1000003 + thread.block->number * 64 + warp) * 0x9E3779B97F4A7C15ull;
  return mixed ^ mixed >> 29;
}

Thread& pop_ready(bool fair) {
  if (seed) {
    size_t best = random_number() % ready_count;
    if (!fair && seed % 2 == 0)
      for (int i = 0; i < 16; ++i) {
        const size_t other = random_number() % ready_count;
        if (priority(*ready_at(other)) > priority(*ready_at(best))) best = other;
      }
    std::swap(ready_at(0), ready_at(best));
  }
  Thread& thread = *ready_at(0);
  ready_head = (ready_head + 1) % ready.size();
  --ready_count;
  return thread;
}

void switch_to(Thread* thread, bool forever = false) {
  if (thread == running) return;
  Fiber& from = running ? running->fiber : launcher;
  running = thread;
  current = thread ? &thread->context : nullptr;
  race::act_as(thread ? &thread->agent : nullptr);
  (thread ? thread->fiber : launcher).switch_from(from, forever);
}

void switch_to_next(bool forever = false) {
  if (!ready_count) fail("deadlock: all threads wait");
  switch_to(&pop_ready(false), forever);
}

}  // namespace

Thread& self() { return *running; }

void begin_schedule(size_t max_threads, uint64_t new_seed) {
  ready.assign(max_threads, nullptr);
  ready_head = ready_count = 0;
  seed = new_seed;
  random_state = seed * 0x9E3779B97F4A7C15ull + 1;
  polls = 0;
  clock_now = 1;
  clock_is_read = false;
  running = nullptr;
  has_failed = false;
}

void run_threads() {
  switch_to_next();
  if (has_failed) throw std::runtime_error("emulator: " + error + race::description() + standing);
}

void end_running(bool back_to_launcher) {
  if (back_to_launcher)
    switch_to(nullptr, true);
  else
    switch_to_next(true);
  std::abort();
}

bool is_random() { return seed != 0; }

uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void fail(const std::string& message) {
  if (!running) throw std::runtime_error("emulator: " + message + census());
  const Block& block = *running->block;
  error = message;
  standing = "\nmet by thread " + std::to_string(running - block.threads.data()) + " of block " +
             std::to_string(block.number) + ", while the threads were" + census();
  has_failed = true;
  switch_to(nullptr);
  std::abort();
}

void make_ready(Thread& thread) {
  thread.what = "";
  thread.site = "";
  push_ready(thread);
}

void wait_here(const char* what, Site site) {
  running->what = what;
  running->site = site;
  switch_to_next();
}

void yield() {
  if (!seed || !ready_count || random_number() % 2) return;
  Thread& next = pop_ready(false);
  push_ready(*running);
  switch_to(&next);
}

void poll(const char* what, Site site) {
  constexpr uint64_t kPollsOfOneThread = 1000, kLongTime = 1000000000000;
  running->what = what;
  running->site = site;
  if (++polls > kPollsOfOneThread * (ready.size() + 10)) {
    if (!clock_is_read) fail("livelock: all threads poll or wait, and nothing changes");
    clock_now += kLongTime;
    progress();
  }
  if (ready_count) {
    Thread& next = pop_ready(true);
    push_ready(*running);
    switch_to(&next);
  }
  running->what = "";
  running->site = "";
}

void progress() {
  polls = 0;
  clock_is_read = false;
}

// Time passes only where nothing else happens, so that whoever waits for something that never comes sees it late.
uint64_t nanoseconds() {
  clock_is_read = true;
  return clock_now;
}

}  // namespace emu
