// Fibers: stacks that one thread of the process changes between.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

// Before the memory of stacks is used for something else.
void release_stack(void* stack, size_t bytes);

class Fiber {
 public:
  // Makes the next switch to this fiber call `entry`, which never returns, on that stack.
  void prepare(unsigned char* stack, size_t bytes, void (*entry)());
  // Suspends the caller as the fiber `from`, which needs no preparation, and runs this one; forever: it will not run
  // again.
  void switch_from(Fiber& from, bool forever = false);
  // The first call in an entry.
  static void entered();

  bool overflowed() const;

 private:
  void arrived();

  const void* stack_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if defined(__x86_64__)
  void* top_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace emu
