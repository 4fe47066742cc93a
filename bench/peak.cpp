// How many float32 multiply-adds this processor does in a second, in all of N threads: ./peak N prints GFLOP/s.
// Chains of FMAs on registers, more of them than the latency needs; the best of several short rounds, as a slower one
// was disturbed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kChains = 12;  // unrolled below
constexpr int kSteps = 2'000'000;
constexpr int kRounds = 9;

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

static volatile float given = 0.5f;  // what the compiler cannot know, it cannot compute

static void multiply_add(float* result) {
  const Vector factor = Vector{} + given, term = factor + given;
  Vector sums[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sums[i] = term * float(i);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (Vector& sum : sums) sum = sum * factor + term;
  }
#pragma GCC unroll 12
  for (Vector& sum : sums) *result += sum[0];
}

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  double best = 1e300;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<float> results(threads * 64);
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(multiply_add, &results[i * 64]);
    multiply_add(&results[0]);
    for (std::thread& other : others) other.join();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::printf("%.1f\n", 2.0 * kLanes * kChains * kSteps * threads / best / 1e9);
}
