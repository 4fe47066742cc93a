// PyTorch's threads for the loops.
#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#ifndef _WIN32
#include <pthread.h>
#include <sys/stat.h>
#endif

#include <thread>

namespace fused_rnn {
namespace {

constexpr double kFlopsWorthAThread = 1e6;  // some 10 us of one core: what waking a thread costs, a few times over
constexpr double kFlopsWorthMeeting = 1e5;  // some 1 us of one core: ten times what meeting costs
constexpr int kPausesBeforeYield = 2000;    // some 50 us: a step of a large layer

// Where there are more workers than processors, what they wait for may not be running.
int pauses_before_yield(int64_t workers) {
  static const int64_t processors = std::thread::hardware_concurrency();
  return workers > processors ? 1 : kPausesBeforeYield;
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// PyTorch's threads do not come along into a forked process, but OpenMP would wait for them there, for ever. A process
// that was forked while it had a single thread has left none behind.
bool must_stay_alone = false;
#ifndef _WIN32
bool has_other_threads = false;
const int registered = pthread_atfork(
    [] {
      struct stat tasks;  // a folder with a link for each thread, and two more
      has_other_threads = stat("/proc/self/task", &tasks) != 0 || tasks.st_nlink != 3;
    },
    nullptr, [] { must_stay_alone = must_stay_alone || has_other_threads; });
#endif

}  // namespace

int64_t workers_for(double flops, double flops_between_meetings) {
  const int64_t threads = must_stay_alone ? 1 : int64_t(torch::stable::get_num_threads());
  const double call = flops / kFlopsWorthAThread, step = flops_between_meetings / kFlopsWorthMeeting;
  const double worth = call < step ? call : step;
  return worth < 1 ? 1 : worth < double(threads) ? int64_t(worth) : threads;
}

void Team::wait(int64_t arriving) {
  const int64_t phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&arrived_, arriving, __ATOMIC_ACQ_REL) == size_) {
    __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  const int most = pauses_before_yield(size_);
  for (int pauses = 1; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++pauses) {
    pause();
    if (pauses % most == 0) std::this_thread::yield();
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

}  // namespace fused_rnn
