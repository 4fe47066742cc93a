// What the lanes of a warp do together.

#include "../../csrc/scalar.h"
#include "internal.h"

namespace emu {
namespace {

using fused_rnn::bit_cast;
using fused_rnn::Float16;

// Every lane hands in its `in`; the last one to come calls combine(in of all lanes, out of all lanes).
template <class In, class Out, class Combine>
Out together(const In& in, const char* what, const Combine& combine) {
  static_assert(sizeof(In) <= Exchange::kInBytes && sizeof(Out) <= Exchange::kOutBytes, "too large a value");
  Warp& warp = *self().warp;
  if (warp.alive < kWarpSize) fail(std::string(what) + " of a warp with missing lanes");
  Exchange& exchange = warp.exchange;
  const unsigned parity = exchange.barrier.generation % 2, lane = current->lane;
  *reinterpret_cast<In*>(exchange.in[parity][lane]) = in;
  if (exchange.barrier.arrived == kWarpSize - 1)
    combine([&](int l) -> const In& { return *reinterpret_cast<const In*>(exchange.in[parity][l]); },
            [&](int l) -> Out& { return *reinterpret_cast<Out*>(exchange.out[parity][l]); });
  arrive(exchange.barrier, kWarpSize, what, "", false);
  return *reinterpret_cast<Out*>(exchange.out[parity][lane]);
}

float low_half(uint32_t pair, Operand operand) {
  return operand == Operand::kBFloat16 ? bit_cast<float>(pair << 16) : float(bit_cast<Float16>(uint16_t(pair)));
}
float high_half(uint32_t pair, Operand operand) {
  return operand == Operand::kBFloat16 ? bit_cast<float>(pair & 0xffff0000u)
                                       : float(bit_cast<Float16>(uint16_t(pair >> 16)));
}
float tf32(uint32_t bits) { return bit_cast<float>(bits & ~0x1fffu); }

constexpr int kRows = 16, kColumns = 8;

struct Fragments {
  float d[4];
  uint32_t a[4], b[2];
};
struct Sums {
  float d[4];
};

// The lanes' registers as matrices, multiplied. kHalves: 16-bit operands, two in a register.
template <bool kHalves, class Get, class Put>
void multiply(const Get& get, const Put& put, Operand operand) {
  constexpr int kDepth = kHalves ? 16 : 8;
  float a[kRows][kDepth], b[kDepth][kColumns], d[kRows][kColumns];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Fragments& in = get(lane);
    const int group = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, k = i / 2 * (kDepth / 2);
      if constexpr (kHalves) {
        a[row][k + 2 * t] = low_half(in.a[i], operand);
        a[row][k + 2 * t + 1] = high_half(in.a[i], operand);
      } else {
        a[row][k + t] = tf32(in.a[i]);
      }
      d[group + i / 2 * 8][2 * t + i % 2] = in.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      const int k = i * (kDepth / 2);
      if constexpr (kHalves) {
        b[k + 2 * t][group] = low_half(in.b[i], operand);
        b[k + 2 * t + 1][group] = high_half(in.b[i], operand);
      } else {
        b[k + t][group] = tf32(in.b[i]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i) put(lane).d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

}  // namespace

void mma(float* d, const uint32_t* a, const uint32_t* b, Operand operand) {
  const Fragments in = {{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Sums sums = together<Fragments, Sums>(in, "mma", [&](const auto& get, const auto& put) {
    if (operand == Operand::kTf32)
      multiply<false>(get, put, operand);
    else
      multiply<true>(get, put, operand);
  });
  for (int i = 0; i < 4; ++i) d[i] = sums.d[i];
}

uint32_t movmatrix(uint32_t pair) {
  return together<uint32_t, uint32_t>(pair, "movmatrix", [&](const auto& get, const auto& put) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      uint32_t elements[2];
      for (int i = 0; i < 2; ++i) {
        const int row = 2 * (lane % 4) + i, column = lane / 4;
        elements[i] = get(4 * row + column / 2) >> 16 * (column % 2) & 0xffffu;
      }
      put(lane) = elements[0] | elements[1] << 16;
    }
  });
}

uint32_t shuffle(uint32_t value, int source_lane) {
  struct In {
    uint32_t value;
    int source;
  };
  return together<In, uint32_t>({value, source_lane}, "shuffle", [&](const auto& get, const auto& put) {
    for (int lane = 0; lane < kWarpSize; ++lane) put(lane) = get(get(lane).source % kWarpSize).value;
  });
}

unsigned ballot(bool predicate) {
  return together<bool, unsigned>(predicate, "ballot", [&](const auto& get, const auto& put) {
    unsigned votes = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) votes |= unsigned(get(lane)) << lane;
    for (int lane = 0; lane < kWarpSize; ++lane) put(lane) = votes;
  });
}

}  // namespace emu
