// The block tier: one block takes 8 rows of the batch through all steps, with weight_hh on chip and no other block to
// wait for. Warp w owns units [16 w, 16 w + 16) of all gates, so that a thread's sums are all gates of its four
// elements: units lane/4 and lane/4 + 8, rows 2 (lane%4) and the next one. Their state stays in its registers. What the
// next product needs of all warps goes through shared memory, in two buffers, so that a step takes one barrier; with
// the reset before the matmul two.
#pragma once

#include "element.cuh"
#include "tile.cuh"

namespace fused_rnn {

constexpr int kElements = 4;  // of a thread

template <Math kMath, bool kResident>
constexpr int kMostThreads = 32 * most_warps(kMath, kResident);

// The place of a thread and its elements.
template <class S>
struct BlockPlace {
  int warp, lane, H, B;

  FUSED_RNN_DEVICE explicit BlockPlace(const Steps<S>& a)
      : warp(threadIdx.x / 32), lane(threadIdx.x % 32), H(a.H), B(a.B) {}

  FUSED_RNN_DEVICE int unit(int e) const { return warp * kUnitTile + lane / 4 + e / 2 * 8; }
  FUSED_RNN_DEVICE int column(int e) const { return 2 * (lane % 4) + e % 2; }
  FUSED_RNN_DEVICE int row(int e) const { return blockIdx.x * kBatchTile + column(e); }
  FUSED_RNN_DEVICE bool exists(int e) const { return unit(e) < H && row(e) < B; }
  FUSED_RNN_DEVICE int state(int e) const { return row(e) * H + unit(e); }
};

// How many steps each column of the thread's elements takes part in, 0 past the end of the batch, and the block's most.
template <class S>
struct BlockLengths {
  int own[2], longest = 0;

  FUSED_RNN_DEVICE BlockLengths(const Steps<S>& a, const BlockPlace<S>& place) {
    for (int e = 0; e < 2; ++e) own[e] = place.row(e) < a.B ? a.length(place.row(e)) : 0;
    for (int column = 0; column < kBatchTile; ++column) {
      const int b = blockIdx.x * kBatchTile + column;
      const int length = b < a.B ? a.length(b) : 0;
      longest = length > longest ? length : longest;
    }
  }
  FUSED_RNN_DEVICE int of(int e) const { return own[e % 2]; }
};

template <class Cell, class S, Math kMath, bool kResident>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kResident>, 1)
    block_forward(const __grid_constant__ ForwardSteps<S> a) {
  using T = Tile<kMath>;
  using Element = typename T::Element;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  FUSED_RNN_SHARED_MEMORY(memory);
  const BlockLayout layout{a.H, kGates, int(sizeof(Element)), kResident};
  const BlockPlace<S> place(a);
  const BlockLengths<S> lengths(a, place);
  const int lane = place.lane, stride = layout.stride();
  const int H = a.H;
  const WarpWeights<kMath, kGates, kResident> weights(layout, memory, place.warp, lane, [&](int gate, int row, int k) {
    const int unit = place.warp * kUnitTile + row;
    return T::element(unit < H && k < H ? to_float(a.weight_hh[(gate * H + unit) * H + k]) : 0.0f);
  });
  float2* const biases = reinterpret_cast<float2*>(memory + layout.weight_bytes());  // [kGates, padded]: of x, of h
  Element* const factors = reinterpret_cast<Element*>(memory + layout.weight_bytes() + layout.bias_bytes());
  const auto put = [&](int factor, int e, float value) {  // factors: h of two steps, r * h
    factors[(factor * kBatchTile + place.column(e)) * stride + place.unit(e)] = T::element(value);
  };

  typename Cell::State state[kElements];
  float x[kElements][kGates];
  for (int i = threadIdx.x; i < kGates * layout.padded(); i += blockDim.x) {
    const int gate = i / layout.padded(), unit = i % layout.padded();
    biases[i] = unit < H ? float2{load(a.bias_ih, gate * H + unit), load(a.bias_hh, gate * H + unit)} : float2{0, 0};
  }
  const auto bias = [&](int gate, int e) { return biases[gate * layout.padded() + place.unit(e)]; };
  const auto load_x = [&](int step) {
    const int t = a.time(step);
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (place.exists(e)) load_gates_x<Cell>(a, t, place.row(e), place.unit(e), x[e]);
  };
  for (int e = 0; e < kElements; ++e) {
    state[e].h = 0.0f;
    if (place.exists(e)) state[e] = initial_state<Cell>(a, place.state(e));
    put(0, e, state[e].h.v);
  }
  load_x(a.begin);
  block_barrier("forward.initial");

#pragma unroll 1
  for (int i = 0; i < a.count; ++i) {
    const int t = a.time(a.begin + i);
    const int now = i % 2, next = 1 - now;
    float products[kGates][4] = {};
    if (t < lengths.longest) {
      multiply<kMath, 0, kFirst, true>(products, weights, lane, factors + now * kBatchTile * stride, stride);
      if constexpr (Cell::kResetBefore) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const Real r_x = x[e][0] + bias(0, e).x, r_h = products[0][e] + bias(0, e).y;
          put(2, e, place.exists(e) ? Cell::reset(r_x, r_h, state[e]).v : 0.0f);
        }
        block_barrier("forward.reset");
        multiply<kMath, kFirst, kGates, true>(products, weights, lane, factors + 2 * kBatchTile * stride, stride);
      }
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (place.exists(e)) {
        if (t < lengths.of(e)) {
          Real gates_x[kGates], gates_h[kGates];
#pragma unroll
          for (int gate = 0; gate < kGates; ++gate) {
            gates_x[gate] = x[e][gate] + bias(gate, e).x;
            gates_h[gate] = products[gate][e] + bias(gate, e).y;
          }
          step_forward<Cell>(a, t, place.row(e), place.unit(e), gates_x, gates_h, state[e]);
        } else {
          skip_forward<Cell>(a, t, place.row(e), place.unit(e));
        }
      }
      put(next, e, state[e].h.v);
    }
    if (i + 1 < a.count) load_x(a.begin + i + 1);
    block_barrier("forward.step");
  }
  for (int e = 0; e < kElements; ++e)
    if (place.exists(e)) store_state<Cell>(a, place.state(e), state[e]);
}

template <class Cell, class S, Math kMath, bool kResident>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kResident>, 1)
    block_backward(const __grid_constant__ BackwardSteps<S> a) {
  using T = Tile<kMath>;
  using Element = typename T::Element;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  FUSED_RNN_SHARED_MEMORY(memory);
  const BlockLayout layout{a.H, kGates, int(sizeof(Element)), kResident};
  const BlockPlace<S> place(a);
  const BlockLengths<S> lengths(a, place);
  const int lane = place.lane, stride = layout.stride();
  const int H = a.H;
  const WarpWeights<kMath, kGates, kResident> weights(  // transposed: a row is a unit of h, k a unit of the gate
      layout, memory, place.warp, lane, [&](int gate, int row, int k) {
        const int unit = place.warp * kUnitTile + row;
        return T::element(unit < H && k < H ? to_float(a.weight_hh[(gate * H + k) * H + unit]) : 0.0f);
      });
  Element* const factors = reinterpret_cast<Element*>(memory + layout.weight_bytes());  // grads_h of two steps
  const auto put = [&](int buffer, int gate, int e, float value) {
    factors[((buffer * kGates + gate) * kBatchTile + place.column(e)) * stride + place.unit(e)] = T::element(value);
  };

  typename Cell::State grad[kElements];
  BackwardInputs<Cell> in[kElements];
  const auto is_active = [&](int e, int t) { return place.exists(e) && t < lengths.of(e); };
  const auto load_in = [&](int step) {
    const int t = a.time(step);
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (is_active(e, t)) in[e] = load_inputs<Cell>(a, t, place.row(e), lengths.of(e), place.unit(e));
  };
  for (int e = 0; e < kElements; ++e)
    if (place.exists(e)) grad[e] = initial_grad<Cell>(a, place.state(e));
  load_in(a.begin);

#pragma unroll 1
  for (int i = 0; i < a.count; ++i) {
    const int t = a.time(a.begin + i);
    const int now = i % 2;
    const Element* const right = factors + now * kGates * kBatchTile * stride;
    const bool any_active = t < lengths.longest;
    float products[kGates][4] = {};
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (is_active(e, t)) grad[e].h = grad[e].h + in[e].grad_output;
    if constexpr (Cell::kResetBefore)
      if (any_active) {
#pragma unroll
        for (int e = 0; e < kElements; ++e)
          put(now, kFirst, e, is_active(e, t) ? Cell::candidate_grad(grad[e], in[e].saved).v : 0.0f);
        block_barrier("backward.candidate");
        multiply<kMath, kFirst, kGates, false>(products, weights, lane, right, stride);
      }
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      auto grads = no_grads<Cell>();
      float h_before = 0.0f, reset_gate = 0.0f;
      if (is_active(e, t)) {
        h_before = in[e].before.h.v;
        reset_gate = in[e].saved[0].v;
        grads = step_backward<Cell>(grad[e], in[e], products[kGates - 1][e]);
      }
      if (place.exists(e)) store_grads<Cell>(a, t, place.row(e), place.unit(e), grads, h_before, reset_gate);
#pragma unroll
      for (int gate = 0; gate < kFirst; ++gate) put(now, gate, e, grads.h[gate].v);
#pragma unroll
      for (int gate = 0; gate < kFirst; ++gate) products[gate][e] = 0.0f;
    }
    if (i + 1 < a.count) load_in(a.begin + i + 1);
    block_barrier("backward.step");
    if (any_active) {
      multiply<kMath, 0, kFirst, false>(products, weights, lane, right, stride);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (is_active(e, t))
#pragma unroll
          for (int gate = 0; gate < kFirst; ++gate) grad[e].h = grad[e].h + products[gate][e];
    }
  }
  for (int e = 0; e < kElements; ++e)
    if (place.exists(e)) store_grad<Cell>(a, place.state(e), grad[e]);
}

}  // namespace fused_rnn
