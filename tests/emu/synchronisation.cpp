// Barriers, and the order of memory accesses between threads.

#include <cstring>

#include "internal.h"

namespace emu {

void arrive(Barrier& barrier, int expected, const char* what, Site site, bool orders_memory) {
  const bool is_first = barrier.arrived == 0;
  if (!is_first && (barrier.what != what || std::strcmp(barrier.site.name, site.name) ||
                    std::strcmp(barrier.site.suffix, site.suffix)))
    fail(std::string("threads that must meet are in two places: ") + barrier.what + " " + barrier.site.name +
         barrier.site.suffix + " and " + what + " " + site.name + site.suffix);
  barrier.what = what;
  barrier.site = site;

  race::Clock& edge = barrier.edges[barrier.generation % 2];
  if (orders_memory) self().agent.release_to(edge);
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    barrier.result = barrier.all_ok;
    barrier.all_ok = true;
    progress();
    for (Thread *thread = barrier.waiting, *next; thread; thread = next) {
      next = thread->next;
      make_ready(*thread);
    }
    barrier.waiting = nullptr;
    yield();
  } else {
    self().next = barrier.waiting;
    barrier.waiting = &self();
    wait_here(what, site);
  }
  if (orders_memory) self().agent.acquire_from(edge);
}

void block_barrier(Site site) { block_barrier_and(true, site); }

bool block_barrier_and(bool ok, Site site) {
  if (!is_on(site)) return ok;
  Block& block = *self().block;
  if (block.alive < block.size) fail("a block barrier after threads of the block have ended");
  block.barrier.all_ok &= ok;
  arrive(block.barrier, block.size, "block barrier", site, true);
  return block.barrier.result;
}

void warp_barrier(Site site) {
  if (!is_on(site)) return;
  Warp& warp = *self().warp;
  if (warp.alive < warp.size) fail("a warp barrier after lanes of the warp have ended");
  arrive(warp.barrier, warp.size, "warp barrier", site, true);
}

void cluster_barrier(Site site) {
  if (!is_on(site)) return;
  Cluster& cluster = *self().block->cluster;
  if (cluster.alive < cluster.size) fail("a cluster barrier after threads of the cluster have ended");
  arrive(cluster.barrier, cluster.size, "cluster barrier", site, true);
}

void require_cooperative() {
  if (!shape().cooperative) fail("a grid barrier in a launch that is not cooperative");
}

// ---- Accesses that threads of several blocks make to the same memory ----

namespace {

// A thread that loads the same value from the same place again waits for another one.
void after_load(const void* p, uint32_t value, Site site) {
  Thread& thread = self();
  const bool again = thread.polled == p && thread.polled_value == value;
  thread.polled = p;
  thread.polled_value = value;
  if (again) poll("polling", site);
}

uint32_t load(const uint32_t* p, bool acquire, Site site, const void* pc) {
  yield();
  race::access(p, sizeof(*p), race::Kind::kAtomicRead, pc);
  race::order_load(p, acquire);
  const uint32_t value = *p;
  after_load(p, value, site);
  return value;
}

void store(uint32_t* p, uint32_t value, const void* pc) {
  yield();
  race::access(p, sizeof(*p), race::Kind::kAtomicWrite, pc);
  race::order_store(p, false);
  *p = value;
  progress();
}

}  // namespace

unsigned load_acquire(const unsigned* p, Site site) { return load(p, is_on(site), site, __builtin_return_address(0)); }

void add_release(unsigned* p, unsigned value, Site site) {
  yield();
  race::access(p, sizeof(*p), race::Kind::kAtomicWrite, __builtin_return_address(0));
  race::order_add(p, is_on(site));
  *p += value;
  progress();
}

void store_release(unsigned* p, unsigned value, Site site) {
  yield();
  race::access(p, sizeof(*p), race::Kind::kAtomicWrite, __builtin_return_address(0));
  race::order_store(p, is_on(site));
  *p = value;
  progress();
}

uint32_t load_relaxed(const uint32_t* p) { return load(p, false, "a relaxed load", __builtin_return_address(0)); }

void store_relaxed(uint32_t* p, uint32_t value) { store(p, value, __builtin_return_address(0)); }

uint4 load_relaxed(const uint4* p) {
  const auto word = [pc = __builtin_return_address(0)](const uint32_t* w) {
    return load(w, false, "a relaxed load", pc);
  };
  return {word(&p->x), word(&p->y), word(&p->z), word(&p->w)};
}

void store_relaxed(uint4* p, uint4 v) {
  store(&p->x, v.x, __builtin_return_address(0));
  store(&p->y, v.y, __builtin_return_address(0));
  store(&p->z, v.z, __builtin_return_address(0));
  store(&p->w, v.w, __builtin_return_address(0));
}

void fence(Site site) {
  if (!is_on(site)) return;
  race::order_fence();
  yield();
}

}  // namespace emu
