// What one thread does for one unit of one row at one step: between memory and the equations of the cell. The tiers
// differ in where the products come from and where the state lives, not in this.
#pragma once

#include "../cells.h"
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

// The first of an element's `width` numbers, which are H apart, at a step of an array [..., B, width, H].
template <class Number, class S>
FUSED_RNN_DEVICE Number* of_element(Number* array, const Steps<S>& a, int step, int b, int unit, int width = 1) {
  return array + int64_t(step) * (a.B * width * a.H) + (b * width * a.H + unit);
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

// The state after the chunk.
template <class Cell, class S>
FUSED_RNN_DEVICE void store_state(const ForwardSteps<S>& a, int at, const typename Cell::State& state) {
  a.hy[at] = from_float<S>(state.h.v);
  if constexpr (kHasCellState<Cell>) {
    if (a.c) a.c[at] = state.c.v;
    if (a.is_last()) a.cy[at] = from_float<S>(state.c.v);
  }
}

template <class Cell, class S>
FUSED_RNN_DEVICE void load_gates_x(const ForwardSteps<S>& a, int t, int b, int unit, float (&x)[Cell::kGates]) {
  const float* from = of_element(a.gates_x, a, a.place(t), b, unit, Cell::kGates);
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) x[gate] = from[gate * a.H];
}

template <class Cell, class S>
FUSED_RNN_DEVICE void store_forward(const ForwardSteps<S>& a, int t, int b, int unit, S output,
                                    const typename Cell::Saved& saved) {
  *of_element(a.output, a, t, b, unit) = output;
  if (!a.saved) return;
  float* to = of_element(a.saved, a, t, b, unit, Cell::kSaved);
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) to[k * a.H] = saved[k].v;
}

// Applies the cell at time t to an active element and stores what it gives; x and h are with their biases.
template <class Cell, class S>
FUSED_RNN_DEVICE void step_forward(const ForwardSteps<S>& a, int t, int b, int unit, const Real (&x)[Cell::kGates],
                                   const Real (&h)[Cell::kGates], typename Cell::State& state) {
  typename Cell::Saved saved;
  state = Cell::forward(x, h, state, saved);
  const S rounded = from_float<S>(state.h.v);
  state.h = to_float(rounded);
  store_forward<Cell>(a, t, b, unit, rounded, saved);
}

// A row that takes no part in time t: its state stays, its output and what is saved are zero.
template <class Cell, class S>
FUSED_RNN_DEVICE void skip_forward(const ForwardSteps<S>& a, int t, int b, int unit) {
  typename Cell::Saved nothing;
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) nothing[k] = 0.0f;
  store_forward<Cell>(a, t, b, unit, from_float<S>(0.0f), nothing);
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

// What an active element needs of time t, apart from the gradient of its state.
template <class Cell>
struct BackwardInputs {
  float grad_output;
  typename Cell::State before;
  typename Cell::Saved saved;
};

template <class Cell, class S>
FUSED_RNN_DEVICE BackwardInputs<Cell> load_inputs(const BackwardSteps<S>& a, int t, int b, int length, int unit) {
  const int before = a.reverse ? t + 1 : t - 1;
  const bool is_first = t == (a.reverse ? length - 1 : 0);
  BackwardInputs<Cell> in;
  in.grad_output = a.grad_output ? to_float(*of_element(a.grad_output, a, t, b, unit)) : 0.0f;
  in.before.h = to_float(*(is_first ? of_element(a.hx, a, 0, b, unit) : of_element(a.output, a, before, b, unit)));
  if constexpr (kHasCellState<Cell>)
    in.before.c = is_first ? to_float(*of_element(a.cx, a, 0, b, unit))
                           : of_element(a.saved, a, before, b, unit, Cell::kSaved)[Cell::kSavedCell * a.H];
  const float* from = of_element(a.saved, a, t, b, unit, Cell::kSaved);
#pragma unroll
  for (int k = 0; k < Cell::kSaved; ++k) in.saved[k] = from[k * a.H];
  return in;
}

// The gradients of an element's gates, and the other factor of weight_hh's gradient. All zero in a row that is not
// active.
template <class Cell, class S>
FUSED_RNN_DEVICE void store_grads(const BackwardSteps<S>& a, int t, int b, int unit,
                                  const StepGrads<Real, typename Cell::State, Cell::kGates>& grads, float h_before,
                                  float reset_gate) {
  const int place = a.place(t);
  S* const to_x = of_element(a.grads_x, a, place, b, unit, Cell::kGates);
  S* const to_h = of_element(a.grads_h, a, place, b, unit, Cell::kGates);
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) {
    to_x[gate * a.H] = from_float<S>(grads.x[gate].v);
    if constexpr (Cell::kGradsDiffer) to_h[gate * a.H] = from_float<S>(grads.h[gate].v);
  }
  *of_element(a.h_before, a, place, b, unit) = from_float<S>(h_before);
  if constexpr (Cell::kResetBefore) *of_element(a.reset_h, a, place, b, unit) = from_float<S>(reset_gate * h_before);
}

template <class Cell>
FUSED_RNN_DEVICE StepGrads<Real, typename Cell::State, Cell::kGates> no_grads() {
  StepGrads<Real, typename Cell::State, Cell::kGates> none;
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate) none.x[gate] = none.h[gate] = 0.0f;
  return none;
}

// The cell's backward at an active element; grad becomes the direct part of the previous state's gradient. grad_reset
// is used with the reset before the matmul only.
template <class Cell>
FUSED_RNN_DEVICE StepGrads<Real, typename Cell::State, Cell::kGates> step_backward(typename Cell::State& grad,
                                                                                   const BackwardInputs<Cell>& in,
                                                                                   float grad_reset) {
  StepGrads<Real, typename Cell::State, Cell::kGates> grads;
  if constexpr (Cell::kResetBefore)
    grads = Cell::backward(grad, in.before, in.saved, grad_reset);
  else
    grads = Cell::backward(grad, in.before, in.saved);
  grad = grads.prev;
  return grads;
}

}  // namespace fused_rnn
