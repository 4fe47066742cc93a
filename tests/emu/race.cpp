#include "race.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "internal.h"
#include "trace.h"

namespace emu::race {
namespace {

bool watched = false;
Agent* acting;
const unsigned char *ignored_begin, *ignored_end;

struct Access {
  uint32_t time = 0;  // 0: none
  unsigned block = 0;
  uint16_t thread = 0;
  Kind kind = Kind::kRead;
  uint32_t bytes = 0;
  const void* pc = nullptr;

  bool is_atomic() const { return kind == Kind::kAtomicRead || kind == Kind::kAtomicWrite; }
};

// The latest accesses to kGranule bytes. Of more than kReads reads that nothing orders, some are forgotten.
constexpr size_t kGranule = 2, kPage = 4096;
constexpr int kReads = 4;
struct Cell {
  Access write;
  Access reads[kReads];
};

using Page = std::vector<Cell>;
std::unordered_map<uintptr_t, Page> pages;
std::unordered_map<const void*, Clock> edges;  // of atomic variables
uintptr_t latest_number = ~uintptr_t(0);
Page* latest_page;
unsigned evictions;

Access first, second;  // the race

Cell& cell_at(uintptr_t address) {
  const uintptr_t number = address / kPage;
  if (number != latest_number) {
    Page& page = pages[number];
    if (page.empty()) page.resize(kPage / kGranule);
    latest_number = number;
    latest_page = &page;
  }
  return (*latest_page)[address % kPage / kGranule];
}

bool is_by(const Access& access, const Agent& agent) {
  return access.block == agent.block && access.thread == agent.thread;
}

bool is_before(const Access& earlier, const Agent& agent) {
  return !earlier.time || is_by(earlier, agent) || agent.clock.time(earlier.block, earlier.thread) >= earlier.time;
}

void check(const Access& earlier, const Access& now) {
  if (is_before(earlier, *acting) || (earlier.is_atomic() && now.is_atomic())) return;
  first = earlier;
  second = now;
  fail("data race");
}

void record_read(Cell& cell, const Access& now) {
  for (Access& read : cell.reads)
    if (is_before(read, *acting) && (!read.is_atomic() || now.is_atomic() || is_by(read, *acting))) {
      read = now;
      return;
    }
  cell.reads[++evictions % kReads] = now;
}

std::string in_words(const Access& access) {
  const bool is_write = access.kind == Kind::kWrite || access.kind == Kind::kAtomicWrite;
  return std::string(access.is_atomic() ? "an atomic " : "a ") + (is_write ? "write" : "read") + " of " +
         std::to_string(access.bytes) + " bytes by " +
         (access.block == kCopyEngine
              ? "an asynchronous copy"
              : "thread " + std::to_string(access.thread) + " of block " + std::to_string(access.block - kFirstBlock)) +
         " at " + place_in_source(access.pc);
}

}  // namespace

bool is_watched() { return watched; }

void watch() { watched = true; }

void Clock::set_time(unsigned block, unsigned thread, uint32_t time) {
  if (blocks_.size() <= block) blocks_.resize(block + 1);
  if (blocks_[block].size() <= thread) blocks_[block].resize(thread + 1);
  blocks_[block][thread] = time;
}

void Clock::join(const Clock& other) {
  if (blocks_.size() < other.blocks_.size()) blocks_.resize(other.blocks_.size());
  for (size_t block = 0; block < other.blocks_.size(); ++block) {
    const std::vector<uint32_t>& from = other.blocks_[block];
    std::vector<uint32_t>& to = blocks_[block];
    if (to.size() < from.size()) to.resize(from.size());
    for (size_t thread = 0; thread < from.size(); ++thread) to[thread] = std::max(to[thread], from[thread]);
  }
}

void Agent::begin(unsigned new_block, unsigned new_thread) {
  *this = Agent();
  block = new_block;
  thread = new_thread;
  if (watched) clock.set_time(block, thread, 1);
}

void Agent::release_to(Clock& edge) {
  if (!watched) return;
  edge.join(clock);
  clock.set_time(block, thread, clock.time(block, thread) + 1);
}

void act_as(Agent* agent) { acting = agent; }

As::As(Agent* other) : own_(acting) { act_as(other); }

void begin_launch() {
  first = second = Access();
  acting = nullptr;
}

void end_launch() {
  pages.clear();
  edges.clear();
  latest_number = ~uintptr_t(0);
  acting = nullptr;
}

void forget(const void* p, size_t bytes) {
  if (!watched) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t at = begin; at < begin + bytes; at += kGranule) cell_at(at) = Cell();
}

void ignore(const void* p, size_t bytes) {
  ignored_begin = static_cast<const unsigned char*>(p);
  ignored_end = ignored_begin + bytes;
}

void access(const void* p, size_t bytes, Kind kind, const void* pc) {
  if (!watched || !acting || !bytes || (p >= ignored_begin && p < ignored_end)) return;
  const Access now = {acting->clock.time(acting->block, acting->thread),
                      acting->block,
                      uint16_t(acting->thread),
                      kind,
                      uint32_t(bytes),
                      pc};
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t at = begin / kGranule * kGranule; at < begin + bytes; at += kGranule) {
    Cell& cell = cell_at(at);
    check(cell.write, now);
    if (kind == Kind::kRead || kind == Kind::kAtomicRead) {
      record_read(cell, now);
    } else {
      for (const Access& read : cell.reads) check(read, now);
      cell = Cell();
      cell.write = now;
    }
  }
}

std::string description() {
  if (!second.time) return "";
  return ": " + in_words(second) + ",\nnot ordered after " + in_words(first);
}

void order_load(const void* p, bool acquire) {
  if (!watched) return;
  const Clock& edge = edges[p];
  (acquire ? acting->clock : acting->loaded).join(edge);
}

void order_add(const void* p, bool release) {
  if (!watched) return;
  Clock& edge = edges[p];
  edge.join(acting->published);
  if (release) acting->release_to(edge);
}

void order_store(const void* p, bool release) {
  if (!watched) return;
  Clock& edge = edges[p] = acting->published;
  if (release) acting->release_to(edge);
}

void order_fence() {
  if (!watched) return;
  acting->acquire_from(acting->loaded);
  acting->published = Clock();
  acting->release_to(acting->published);
}

}  // namespace emu::race

// ---- The calls that -fsanitize=thread puts at every access, and one per file before main ----

using emu::race::access;
using emu::race::Kind;

#define ACCESSES(bytes)                                                                                      \
  void __tsan_read##bytes(void* p) { access(p, bytes, Kind::kRead, __builtin_return_address(0)); }           \
  void __tsan_write##bytes(void* p) { access(p, bytes, Kind::kWrite, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, Kind::kRead, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, Kind::kWrite, __builtin_return_address(0)); }

extern "C" {
void __tsan_init() { emu::race::watch(); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long bytes) { access(p, bytes, Kind::kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long bytes) { access(p, bytes, Kind::kWrite, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access(from, bytes, Kind::kRead, __builtin_return_address(0));
  access(to, bytes, Kind::kWrite, __builtin_return_address(0));
  return __builtin_memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, Kind::kRead, __builtin_return_address(0));
  access(to, bytes, Kind::kWrite, __builtin_return_address(0));
  return __builtin_memmove(to, from, bytes);
}
void* __tsan_memset(void* p, int value, size_t bytes) {
  access(p, bytes, Kind::kWrite, __builtin_return_address(0));
  return __builtin_memset(p, value, bytes);
}
}
