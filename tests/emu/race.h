// A detector of data races between the emulated threads. Kernels are compiled with -fsanitize=thread, whose calls at
// every access end here and not in ThreadSanitizer's own library: that one loses races among more than 255 threads, and
// has to be loaded before everything else. Without that flag nothing is watched and everything here does nothing.
//
// Two accesses of different threads to the same bytes, one of them a write and not both of them atomic, race if neither
// happens before the other: as vector clocks see it, not as the schedule of one run has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emu::race {

bool is_watched();

// Those who carry out asynchronous copies count as the threads of one more block, before the others.
constexpr unsigned kCopyEngine = 0, kFirstBlock = 1;

// How far somebody knows everybody's time.
class Clock {
 public:
  uint32_t time(unsigned block, unsigned thread) const {
    return block < blocks_.size() && thread < blocks_[block].size() ? blocks_[block][thread] : 0;
  }
  void set_time(unsigned block, unsigned thread, uint32_t time);
  void join(const Clock& other);

 private:
  std::vector<std::vector<uint32_t>> blocks_;  // of a block that nothing is known of: empty
};

// Who accesses memory: a thread, or one of those who carry out its asynchronous copies.
struct Agent {
  unsigned block = 0, thread = 0;
  Clock clock;
  Clock published;  // by the latest fence: what it lets relaxed stores hand on
  Clock loaded;     // by relaxed loads: what the next fence lets take effect

  void begin(unsigned block, unsigned thread);
  void release_to(Clock& edge);  // all that it did happens before what others do after acquiring from the edge
  void acquire_from(const Clock& edge) { clock.join(edge); }
};

// Who acts now; null: the launching thread, whose accesses race with none.
void act_as(Agent* agent);

class As {
 public:
  explicit As(Agent* other);
  ~As() { act_as(own_); }
  As(const As&) = delete;

 private:
  Agent* own_;
};

// Called by instrumented code before main.
void watch();

void begin_launch();
void end_launch();
// Memory that has become another: accesses until now race with none.
void forget(const void* p, size_t bytes);
// Accesses there are not looked at.
void ignore(const void* p, size_t bytes);

enum class Kind { kRead, kWrite, kAtomicRead, kAtomicWrite };
// pc: where in a kernel. Fails at a race.
void access(const void* p, size_t bytes, Kind kind, const void* pc);

// The two accesses of the race that ended the launch, with their places in the source; empty if none did.
std::string description();

// ---- The order that atomic accesses make, beside access() ----

void order_load(const void* p, bool acquire);
void order_add(const void* p, bool release);
void order_store(const void* p, bool release);
void order_fence();

}  // namespace emu::race
