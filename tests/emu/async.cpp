// Asynchronous copies. Their destination is NaN from the order on until the bytes land: at the wait of the thread that
// gave the order (cp.async), or at a moment of its own (bulk copies and asynchronous stores), which counts on an
// mbarrier.

#include <cstring>

#include "internal.h"

namespace emu {
namespace {

constexpr unsigned kCopyBytes = 16;
constexpr int kMaxBarriers = 4096, kMaxFlights = 1 << 16, kAgents = 64;

bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// The block whose shared memory that is, in the cluster of the running thread.
Block& owner_of(const void* p, size_t bytes, const char* what) {
  const unsigned char* const start = static_cast<const unsigned char*>(p);
  for (Block& block : self().block->cluster->blocks)
    if (start >= block.shared && start + bytes <= block.shared + shape().shared_bytes) return block;
  fail(std::string(what) + " outside of shared memory");
}

// ---- mbarriers ----

// The uint64_t in shared memory is only a number of one of these.
struct State {
  unsigned count = 0, pending = 0, phase = 0;
  long expected_bytes = 0;
  race::Clock edges[2];  // by the phase's parity
};
State states[kMaxBarriers];
uint64_t state_count;
constexpr uint64_t kMagic = 0x6d62617272000000;

State& state_of(const uint64_t* barrier) {
  const uint64_t number = *barrier ^ kMagic;
  if (number >= state_count) fail("an mbarrier that is not initialised, or was overwritten");
  return states[number];
}

// By a thread: an initialisation that is not ordered before is a race.
State& access_barrier(const uint64_t* barrier, const void* pc) {
  race::access(barrier, sizeof(*barrier), race::Kind::kRead, pc);
  return state_of(barrier);
}

void complete_if_all_is_there(State& state) {
  if (state.pending || state.expected_bytes) return;
  state.phase ^= 1;
  state.pending = state.count;
  progress();
}

// ---- Copies in flight ----

struct Flight {
  unsigned char* destination;
  const unsigned char* source;  // null: the value
  unsigned char value[kCopyBytes];
  unsigned bytes;
  uint64_t* barrier;
  const void* pc;  // of the order
  race::Agent* agent;
};
Flight flights[kMaxFlights];
int flight_count;

// Those who carry copies out, in turn.
race::Agent agents[kAgents];
unsigned next_agent;

void land(int i) {
  const Flight flight = flights[i];
  flights[i] = flights[--flight_count];
  State& state = state_of(flight.barrier);
  const unsigned char* const source = flight.source ? flight.source : flight.value;
  {
    const race::As as(flight.agent);
    if (flight.source) race::access(source, flight.bytes, race::Kind::kRead, flight.pc);
    race::access(flight.destination, flight.bytes, race::Kind::kWrite, flight.pc);
  }
  flight.agent->release_to(state.edges[state.phase]);
  std::memcpy(flight.destination, source, flight.bytes);
  state.expected_bytes -= flight.bytes;
  complete_if_all_is_there(state);
}

void take_off(const Flight& order) {
  if (flight_count == kMaxFlights) fail("more than 65536 copies in flight");
  access_barrier(order.barrier, order.pc);
  Flight& flight = flights[flight_count++] = order;
  flight.agent = &agents[next_agent++ % kAgents];
  race::Clock edge;
  self().agent.release_to(edge);
  flight.agent->acquire_from(edge);
  {
    const race::As as(flight.agent);
    race::access(flight.destination, flight.bytes, race::Kind::kWrite, flight.pc);
  }
  std::memset(flight.destination, kNaN, flight.bytes);
  progress();
}

}  // namespace

void reset_async() {
  state_count = 0;
  flight_count = 0;
  next_agent = 0;
  for (unsigned i = 0; i < kAgents; ++i) agents[i].begin(race::kCopyEngine, i);
}

// ---- cp.async ----

namespace {

void access_memory(const CopyAsync& copy) {
  race::access(copy.source, size_t(copy.valid_bytes), race::Kind::kRead, copy.pc);
  race::access(copy.destination, kCopyBytes, race::Kind::kWrite, copy.pc);
}

}  // namespace

void cp_async16(void* destination, const void* source, int valid_bytes) {
  if (!is_aligned(destination, kCopyBytes) || (valid_bytes && !is_aligned(source, kCopyBytes)))
    fail("cp.async at an address that is not aligned to 16 bytes");
  if (&owner_of(destination, kCopyBytes, "cp.async") != self().block) fail("cp.async into another block's memory");
  const CopyAsync copy = {static_cast<unsigned char*>(destination), static_cast<const unsigned char*>(source),
                          valid_bytes, self().copy_group, __builtin_return_address(0)};
  access_memory(copy);
  std::memset(destination, kNaN, kCopyBytes);
  self().copies.push_back(copy);
}

void cp_async_commit() { ++self().copy_group; }

void cp_async_wait(int pending, Site site) {
  if (!is_on(site)) return;
  Thread& thread = self();
  size_t kept = 0;
  for (const CopyAsync& copy : thread.copies) {
    if (copy.group >= thread.copy_group - pending) {
      thread.copies[kept++] = copy;
      continue;
    }
    access_memory(copy);
    std::memset(copy.destination, 0, kCopyBytes);
    std::memcpy(copy.destination, copy.source, size_t(copy.valid_bytes));
  }
  thread.copies.resize(kept);
}

void check_copies_at_end(const Thread& thread) {
  if (!thread.copies.empty()) fail("a thread ends with cp.async in flight");
}

// ---- mbarriers, bulk copies, asynchronous stores ----

void mbarrier_init(uint64_t* barrier, unsigned count) {
  if (!is_aligned(barrier, sizeof(*barrier))) fail("an mbarrier that is not aligned to 8 bytes");
  owner_of(barrier, sizeof(*barrier), "an mbarrier");
  if (state_count == kMaxBarriers) fail("more than 4096 mbarriers");
  race::access(barrier, sizeof(*barrier), race::Kind::kWrite, __builtin_return_address(0));
  states[state_count] = State();
  states[state_count].count = states[state_count].pending = count;
  *barrier = kMagic ^ state_count++;
}

void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes) {
  State& state = access_barrier(barrier, __builtin_return_address(0));
  if (!state.pending) fail("more arrivals at an mbarrier than it was initialised with");
  self().agent.release_to(state.edges[state.phase]);
  state.expected_bytes += expected_bytes;
  --state.pending;
  complete_if_all_is_there(state);
  yield();
}

void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site) {
  if (!is_on(site)) return;
  if (parity > 1) fail("the parity of an mbarrier's phase is 0 or 1");
  State& state = access_barrier(barrier, __builtin_return_address(0));
  while (state.phase == parity) {
    if (flight_count && (!is_random() || random_number() % 4 == 0))
      land(is_random() ? int(random_number() % unsigned(flight_count)) : 0);
    else
      poll("mbarrier", site);
  }
  self().agent.acquire_from(state.edges[parity]);
}

void bulk_copy(void* destination, const void* source, unsigned bytes, uint64_t* barrier) {
  if (!is_aligned(destination, kCopyBytes) || !is_aligned(source, kCopyBytes) || bytes % kCopyBytes)
    fail("a bulk copy whose addresses and bytes are not all multiples of 16");
  owner_of(destination, bytes, "a bulk copy");
  take_off({static_cast<unsigned char*>(destination),
            static_cast<const unsigned char*>(source),
            {},
            bytes,
            barrier,
            __builtin_return_address(0),
            nullptr});
}

void store_async(void* destination, const void* value, unsigned bytes, uint64_t* barrier) {
  if (&owner_of(destination, bytes, "st.async") != &owner_of(barrier, sizeof(*barrier), "an mbarrier"))
    fail("st.async into the memory of one block and onto the mbarrier of another");
  if (!is_aligned(destination, bytes)) fail("st.async at an address that is not aligned");
  Flight flight = {
      static_cast<unsigned char*>(destination), nullptr, {}, bytes, barrier, __builtin_return_address(0), nullptr};
  std::memcpy(flight.value, value, bytes);
  take_off(flight);
}

void check_copies_at_end(const Block& block) {
  for (int i = 0; i < flight_count; ++i)
    if (flights[i].destination >= block.shared && flights[i].destination < block.shared + shape().shared_bytes)
      fail("a block ends with copies into its shared memory in flight");
}

void* cluster_pointer(const void* p, unsigned rank) {
  const Cluster& cluster = *self().block->cluster;
  if (rank >= cluster.blocks.size()) fail("a cluster has no block of rank " + std::to_string(rank));
  const Block& block = cluster.blocks[rank];
  if (!block.alive) fail("an access to the shared memory of a block that has ended");
  return block.shared + (static_cast<const unsigned char*>(p) - current->shared);
}

}  // namespace emu
