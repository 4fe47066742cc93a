// Threads and scratch memory for the CPU loops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../inline.h"

namespace fused_rnn {

// How many workers a call is worth that does so much work, and so much of it between two meetings of them: at most
// PyTorch's threads.
int64_t workers_for(double flops, double flops_between_meetings);

// What the workers of one call share.
class Team {
 public:
  explicit Team(int64_t size) : size_(size) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Returns when all have arrived; `arriving` of them do so by this call. What was written before is seen after.
  void wait(int64_t arriving);

 private:
  const int64_t size_;
  alignas(64) int64_t arrived_ = 0;
  alignas(64) int64_t phase_ = 0;
};

// The part of a team that one thread plays: workers [begin, end) of `count`. One thread may have to play all.
struct Worker {
  Team& team;
  int64_t begin, end, count;

  FUSED_RNN_INLINE int64_t first(int64_t n) const { return n * begin / count; }  // of n things, [first, last) are
  FUSED_RNN_INLINE int64_t last(int64_t n) const { return n * end / count; }     // this worker's
  FUSED_RNN_INLINE void wait() const {
    if (end - begin < count) team.wait(end - begin);
  }
};

// Runs body(worker) for a team of `count` workers, which all run at once. The body must not throw: the others would
// wait for ever.
void run_team(int64_t count, void (*body)(const Worker&, void* context), void* context);

template <class F>
FUSED_RNN_INLINE void run_team(int64_t count, F f) {
  run_team(count, [](const Worker& worker, void* context) { (*static_cast<F*>(context))(worker); }, &f);
}

// Aligned memory for one call. Throws std::runtime_error if there is none. Filled with NaN when the extension is built
// for tests. Freed blocks are kept for the thread's next calls: fresh pages cost more than what is computed in them.
void* allocate_scratch(size_t bytes);
void free_scratch(void* memory);

template <class T>
class Scratch {
 public:
  FUSED_RNN_INLINE explicit Scratch(int64_t n) : data_(n > 0 ? allocate(n) : nullptr) {}
  FUSED_RNN_INLINE ~Scratch() {
    if (data_) free_scratch(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  FUSED_RNN_INLINE operator T*() const { return data_; }

 private:
  FUSED_RNN_INLINE static T* allocate(int64_t n) { return static_cast<T*>(allocate_scratch(size_t(n) * sizeof(T))); }

  T* data_;
};

}  // namespace fused_rnn
