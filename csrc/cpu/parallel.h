// Work sharing and scratch memory for the CPU loops.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../inline.h"

namespace fused_rnn {

// Calls body(begin, end) on disjoint ranges that cover [0, n), on as many of PyTorch's threads as the work is worth.
// `flops` is the work of one item. What the body throws reaches the caller.
void parallel_for(int64_t n, double flops, void (*body)(int64_t begin, int64_t end, void* context), void* context);

template <class F>
FUSED_RNN_INLINE void parallel_for(int64_t n, double flops, F f) {
  parallel_for(
      n, flops, [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); }, &f);
}

int64_t thread_count();

// Aligned memory for one call. Throws std::bad_alloc. Filled with NaN when the extension is built for tests. Freed
// blocks are kept for the thread's next calls: fresh pages cost more than what is computed in them.
void* allocate_scratch(size_t bytes);
void free_scratch(void* memory);

template <class T>
class Scratch {
 public:
  FUSED_RNN_INLINE explicit Scratch(int64_t n) : data_(static_cast<T*>(allocate_scratch(size_t(n) * sizeof(T)))) {}
  FUSED_RNN_INLINE ~Scratch() { free_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  FUSED_RNN_INLINE operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace fused_rnn
