// What one thread does for one unit of one row at one step: between memory and the equations of the cell. The tiers
// differ in where the products come from and where the state lives, not in this.
#pragma once

#include "../cells.h"
#include "predicated.cuh"
#include "real.cuh"
#include "steps.h"

namespace fused_rnn {

// Gates whose matmul takes h itself: all of them, or with the reset before the matmul all but the candidate.
template <class Cell>
constexpr int kHiddenGates = Cell::kResetBefore ? Cell::kGates - 1 : Cell::kGates;

template <class Cell>
constexpr bool kHasCellState = Cell::kSavedCell >= 0;

template <class S>
FUSED_RNN_DEVICE float load(const S* array, int at) {
  return array ? to_float(array[at]) : 0.0f;
}

// The first of an element's numbers, which are H apart, at a step of an array [..., B, kWidth, H].
template <int kWidth, class Number, class S>
FUSED_RNN_DEVICE Number* of_element(Number* array, const Steps<S>& a, int step, int b, int unit) {
  return array + int64_t(step) * (a.B * kWidth * a.H) + int64_t(b) * (kWidth * a.H) + unit;
}

// n times H numbers further: one instruction, as neither factor has a sign. An address, since `from` may be null where
// nothing is loaded or stored.
template <class Number>
FUSED_RNN_DEVICE Number* rows_on(Number* from, int n, int H) {
  return reinterpret_cast<Number*>(reinterpret_cast<uintptr_t>(from) +
                                   uint64_t(uint32_t(H)) * uint32_t(n * int(sizeof(Number))));
}

// ---- Forward ----

// The state before the chunk.
template <class Cell, class S>
FUSED_RNN_DEVICE typename Cell::State initial_state(const ForwardSteps<S>& a, int at) {
  typename Cell::State state;
  state.h = to_float((a.is_first() ? a.hx : a.hy)[at]);
  if constexpr (kHasCellState<Cell>) state.c = a.is_first() ? to_float(a.cx[at]) : a.c[at];
  return state;
}

// The same of one step, zero where a new sequence begins.
template <class Cell, class S>
FUSED_RNN_DEVICE typename Cell::State state_before(const ForwardSteps<S>& a, int at) {
  return a.starts_anew(a.time(a.begin), at / a.H) ? typename Cell::State{} : initial_state<Cell>(a, at);
}

// The state after the chunk.
template <class Cell, class S>
FUSED_RNN_DEVICE void store_state(const ForwardSteps<S>& a, int at, const typename Cell::State& state) {
  a.hy[at] = from_float<S>(state.h.v);
  if constexpr (kHasCellState<Cell>) {
    if (a.c) a.c[at] = state.c.v;
    if (a.is_last()) a.cy[at] = from_float<S>(state.c.v);
  }
}

template <class Cell>
FUSED_RNN_DEVICE void load_gates_x(bool exists, const float* from, int H, uint32_t (&bits)[Cell::kGates]) {
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) load_if(exists, rows_on(from, gate, H), bits[gate]);
}

template <class Cell, class S>
FUSED_RNN_DEVICE void store_saved(bool exists, S* to, int H, const typename Cell::Saved& saved) {
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) store_if(exists, rows_on(to, k, H), from_float<S>(saved[k].v));
}

// ---- Backward ----

// d loss / d state before the chunk, in the order of the pass.
template <class Cell, class S>
FUSED_RNN_DEVICE typename Cell::State initial_grad(const BackwardSteps<S>& a, int at) {
  typename Cell::State grad;
  grad.h = a.is_first() ? load(a.grad_hy, at) : a.grad_h[at];
  if constexpr (kHasCellState<Cell>) grad.c = a.is_first() ? load(a.grad_cy, at) : a.grad_c[at];
  return grad;
}

// d loss / d state after the chunk.
template <class Cell, class S>
FUSED_RNN_DEVICE void store_grad(const BackwardSteps<S>& a, int at, const typename Cell::State& grad) {
  if (!a.is_last()) {
    a.grad_h[at] = grad.h.v;
    if constexpr (kHasCellState<Cell>) a.grad_c[at] = grad.c.v;
  } else {
    a.grad_hx[at] = from_float<S>(grad.h.v);
    if constexpr (kHasCellState<Cell>) a.grad_cx[at] = from_float<S>(grad.c.v);
  }
}

// What an element needs of time t apart from the gradient of its state: bits as they are stored, since a conversion
// would wait for the load.
template <class Cell>
struct BackwardInputs {
  uint32_t grad_output, h_before;
  uint32_t c_before;  // LSTM only
  uint32_t saved[Cell::kSaved];
};

template <class Cell, class S>
FUSED_RNN_DEVICE void load_saved(bool exists, const S* from, const S* from_before, int H, BackwardInputs<Cell>& in) {
  if constexpr (kHasCellState<Cell>) load_if(exists, rows_on(from_before, Cell::kSavedCell, H), in.c_before);
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) load_if(exists, rows_on(from, k, H), in.saved[k]);
}

template <class Cell, class S>
FUSED_RNN_DEVICE void saved_of(const BackwardInputs<Cell>& in, typename Cell::Saved& saved) {
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) saved[k] = to_float(from_bits<S>(in.saved[k]));
}

template <class S>
FUSED_RNN_DEVICE bool is_first_step(const BackwardSteps<S>& a, int t, int length) {
  return t == (a.reverse ? length - 1 : 0);
}

template <class Cell>
using GradsOf = StepGrads<NumberOf<Cell>, typename Cell::State, Cell::kGates>;

// The cell's backward. grad_reset is used with the reset before the matmul only.
template <class Cell>
FUSED_RNN_DEVICE GradsOf<Cell> step_backward(const typename Cell::State& grad, const typename Cell::State& before,
                                             const typename Cell::Saved& saved, float grad_reset) {
  if constexpr (Cell::kResetBefore)
    return Cell::backward(grad, before, saved, grad_reset);
  else
    return Cell::backward(grad, before, saved);
}

// The gradients of the gates of an element that is not active.
template <class Cell>
FUSED_RNN_DEVICE GradsOf<Cell> no_grads() {
  GradsOf<Cell> none;
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) none.x[gate] = none.h[gate] = 0.0f;
  return none;
}

// Where an element's gradients go, and the other factors of weight_hh's gradient: zeros where it is not active.
template <class S>
struct GradTargets {
  S* grads_x;
  S* grads_h;
  S* h_before;
  S* reset_h;
};

template <class Cell, class S>
FUSED_RNN_DEVICE void store_grads(bool exists, const GradTargets<S>& to, int H, const GradsOf<Cell>& grads, S h_before,
                                  float reset_gate) {
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    store_if(exists, rows_on(to.grads_x, gate, H), from_float<S>(grads.x[gate].v));
    if constexpr (Cell::kGradsDiffer) store_if(exists, rows_on(to.grads_h, gate, H), from_float<S>(grads.h[gate].v));
  }
  store_if(exists, to.h_before, h_before);
  if constexpr (Cell::kResetBefore) store_if(exists, to.reset_h, from_float<S>(reset_gate * to_float(h_before)));
}

}  // namespace fused_rnn
