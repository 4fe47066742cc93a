#include "fiber.h"

#include <cstdint>

// AddressSanitizer's, in a process that has it.
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size) __attribute__((weak));
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size) __attribute__((weak));
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes) __attribute__((weak));
}

namespace emu {
namespace {

constexpr uint64_t kCanary = 0x5afe57acc5afe57a;  // at the bottom of each stack

Fiber *left, *running;  // of the latest switch

}  // namespace

#if defined(__x86_64__)

// Pushes the registers that a function must preserve, exchanges the stack pointers, and pops the other fiber's.
extern "C" __attribute__((visibility("hidden"))) void emu_switch_stack(void** save, void* to);
asm(R"(
  .text
  .type emu_switch_stack, @function
emu_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size emu_switch_stack, . - emu_switch_stack
)");

#endif

void release_stack(void* stack, size_t bytes) {
  // Frames that were never left are still marked.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack, bytes);
}

void Fiber::prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
  stack_ = stack;
  stack_bytes_ = bytes;
  fake_stack_ = nullptr;
  release_stack(stack, bytes);
  *reinterpret_cast<uint64_t*>(stack) = kCanary;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // where entry would return to; it also makes the stack misaligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
  top_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_from(Fiber& from, bool forever) {
  left = &from;
  running = this;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(forever ? nullptr : &from.fake_stack_, stack_, stack_bytes_);
#if defined(__x86_64__)
  emu_switch_stack(&from.top_, top_);
#else
  swapcontext(&from.context_, &context_);
#endif
  running->arrived();
}

void Fiber::arrived() {
  // This is how the caller's own stack becomes known.
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack_, &left->stack_, &left->stack_bytes_);
}

void Fiber::entered() { running->arrived(); }

bool Fiber::overflowed() const { return *static_cast<const uint64_t*>(stack_) != kCanary; }

}  // namespace emu
