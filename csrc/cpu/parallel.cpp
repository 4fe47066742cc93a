// PyTorch's threads for the loops.
#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <thread>

namespace fused_rnn {
namespace {

constexpr double kFlopsWorthAThread = 2e5;  // some 10 us of one core: what waking a thread costs, a few times over
constexpr int kPausesBeforeYield = 2000;    // some 50 us: a step of a large layer

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int64_t thread_count() { return int64_t(torch::stable::get_num_threads()); }

int64_t workers_for(double flops) {
  const int64_t threads = thread_count();
  const double worth = flops / kFlopsWorthAThread;
  return worth < 1 ? 1 : worth < double(threads) ? int64_t(worth) : threads;
}

void Team::wait(int64_t arriving) {
  const int64_t phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, arriving, __ATOMIC_ACQ_REL) == size_) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int pauses = 1; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++pauses) {
    pause();
    if (pauses % kPausesBeforeYield == 0) std::this_thread::yield();  // more threads than processors
  }
}

// PyTorch gives each thread one range of [0, count) and runs all ranges at once; where it has fewer threads, or this is
// a parallel region already, the ranges are longer, down to a single one that is everything.
void run_team(int64_t count, void (*body)(const Worker&, void* context), void* context) {
  Team team(count);
  if (count == 1) return body({team, 0, 1, 1}, context);
  torch::stable::parallel_for(0, count, 1,
                              [&](int64_t begin, int64_t end) { body({team, begin, end, count}, context); });
}

void parallel_for(int64_t n, double flops, void (*body)(int64_t, int64_t, void*), void* context) {
  const double items = kFlopsWorthAThread / (flops < 1 ? 1 : flops);
  const int64_t grain = items < 1 ? 1 : items > double(n) ? n : int64_t(items);
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

}  // namespace fused_rnn
