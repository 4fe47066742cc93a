// Intel's AMX: eight tile registers of up to 16 rows of 64 bytes, and products of them. Each operation has two bodies,
// the instruction and, with FUSED_RNN_AMX_EMULATED, plain C++ that gives the same bits on any processor. The number of
// a register is a template argument, which both bodies can take.
//
// Registers 0 to 3 hold sums, 4 and 6 left-hand factors, 5 and 7 right-hand factors. Source of the operations: Intel 64
// and IA-32 Architectures Software Developer's Manual, volume 2.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../scalar.h"

namespace fused_rnn {
namespace {
namespace amx {

constexpr int kRows = 16;      // of a tile, at most
constexpr int kRowBytes = 64;  // 16 numbers of float32 or int32, 32 of bfloat16, or 64 of int8

// What ldtilecfg reads: the shapes of the registers.
struct alignas(64) Shapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  // Sums and left-hand factors have `count` rows; right-hand factors, which have a row for a word of k, have all.
  explicit Shapes(int count) {
    for (int t = 0; t < 8; ++t) row_bytes[t] = kRowBytes, rows[t] = uint8_t(t == 5 || t == 7 ? kRows : count);
  }
};

#ifdef FUSED_RNN_AMX_EMULATED

struct Registers {
  int rows[8];
  alignas(64) uint8_t data[8][kRows][kRowBytes];
};
thread_local Registers registers;

inline void configure(const Shapes& shapes) {
  std::memset(registers.data, 0, sizeof(registers.data));
  for (int t = 0; t < 8; ++t) registers.rows[t] = shapes.rows[t];
}
inline void release() {
  for (int& rows : registers.rows) rows = 0;
}
template <int kTile>
void zero() {
  std::memset(registers.data[kTile], 0, sizeof(registers.data[kTile]));
}
// `stride`: bytes from a row in memory to the next
template <int kTile>
void load(const void* from, int64_t stride) {
  zero<kTile>();
  for (int r = 0; r < registers.rows[kTile]; ++r)
    std::memcpy(registers.data[kTile][r], static_cast<const char*>(from) + r * stride, kRowBytes);
}
template <int kTile>
void store(void* to, int64_t stride) {
  for (int r = 0; r < registers.rows[kTile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, registers.data[kTile][r], kRowBytes);
}

// AMX takes subnormal numbers for zero and leaves none.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline void widen(const uint8_t* row, float (&numbers)[32]) {
  for (int i = 0; i < 32; ++i) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<char*>(&bits) + 2, row + 2 * i, 2);
    std::memcpy(&numbers[i], &bits, 4);
    numbers[i] = flushed(numbers[i]);
  }
}
// sum += left right, of int8 and unsigned int8.
template <int kSum, int kLeft, int kRight>
void add_product(int8_t) {
  for (int m = 0; m < registers.rows[kSum]; ++m) {
    int32_t total[16];
    std::memcpy(total, registers.data[kSum][m], kRowBytes);
    for (int k = 0; k < kRowBytes; ++k)
      for (int n = 0; n < 16; ++n)
        total[n] += int8_t(registers.data[kLeft][m][k]) * registers.data[kRight][k / 4][4 * n + k % 4];
    std::memcpy(registers.data[kSum][m], total, kRowBytes);
  }
}

// The same of bfloat16 in float32: even and odd k are sums of their own until the end.
template <int kSum, int kLeft, int kRight>
void add_product(BFloat16) {
  float right[kRows][32];
  for (int k = 0; k < kRows; ++k) widen(registers.data[kRight][k], right[k]);
  for (int m = 0; m < registers.rows[kSum]; ++m) {
    float left[32], total[16];
    widen(registers.data[kLeft][m], left);
    std::memcpy(total, registers.data[kSum][m], kRowBytes);
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < kRows; ++k) {
        even = flushed(std::fma(left[2 * k], right[k][2 * n], even));
        odd = flushed(std::fma(left[2 * k + 1], right[k][2 * n + 1], odd));
      }
      total[n] = flushed(flushed(total[n]) + flushed(even + odd));
    }
    std::memcpy(registers.data[kSum][m], total, kRowBytes);
  }
}

#else

// The "memory" clobbers keep stores of the program before loads of tiles, which GCC's own intrinsics do not.
FUSED_RNN_INLINE void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
FUSED_RNN_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }
template <int kTile>
FUSED_RNN_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
FUSED_RNN_INLINE void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
FUSED_RNN_INLINE void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kSum, int kLeft, int kRight>
FUSED_RNN_INLINE void add_product(int8_t) {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}
template <int kSum, int kLeft, int kRight>
FUSED_RNN_INLINE void add_product(BFloat16) {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

#endif

thread_local int shaped_for = 0;  // rows for which this thread's registers have their shapes; 0: none

// Configures the registers for tiles of `rows` rows. A change of shapes zeroes all registers.
FUSED_RNN_INLINE void shape_for(int rows) {
  if (rows == shaped_for) return;
  configure(Shapes(rows));
  shaped_for = rows;
}

// While a worker has one, its thread's registers are in use. A thread with live registers saves 8 KiB at each switch.
struct InUse {
  InUse() = default;
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
  ~InUse() {
    release();
    shaped_for = 0;
  }
};

}  // namespace amx
}  // namespace
}  // namespace fused_rnn
