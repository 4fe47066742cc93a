// The stepwise tier: what follows each step's matmul, one thread an element, any number of blocks. Also the small
// kernels around the loops.
#pragma once

#include "element.cuh"

namespace fused_rnn {

constexpr int kStepThreads = 256;

// body(i) for all i < n, whatever the size of the grid.
template <class Body>
FUSED_RNN_DEVICE void for_each(int64_t n, const Body& body) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) body(i);
}

// body(at) for all elements of a state, [B, H].
template <class S, class Body>
FUSED_RNN_DEVICE void for_each_element(const Steps<S>& a, const Body& body) {
  for_each(a.B * a.H, [&](int64_t at) { body(int(at)); });
}

// gates_x or gates_h of an element, with bias.
template <class Cell, class S>
FUSED_RNN_DEVICE void load_gates(const float* gates, const S* bias, const Steps<S>& a, int b, int unit,
                                 NumberOf<Cell> (&to)[Cell::kGates]) {
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate)
    to[gate] = gates[(b * Cell::kGates + gate) * a.H + unit] + load(bias, gate * a.H + unit);
}

// r * h, the left factor of the candidate's matmul. gates_h has r's part already.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_reset(const __grid_constant__ ForwardStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H, r = b * Cell::kGates * a.H + unit;
    const Real r_x = a.gates_x[r] + load(a.bias_ih, unit), r_h = step.gates_h[r] + load(a.bias_hh, unit);
    step.between[at] = from_float<S>(Cell::reset(r_x, r_h, state_before<Cell>(a, at)).v);
  });
}

template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_forward(const __grid_constant__ ForwardStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H;
    typename Cell::State state = state_before<Cell>(a, at);
    typename Cell::Saved saved{};
    S output = from_float<S>(0.0f);
    if (t < a.length(b)) {
      NumberOf<Cell> x[Cell::kGates], h[Cell::kGates];
      load_gates<Cell>(a.gates_x, a.bias_ih, a, b, unit, x);
      load_gates<Cell>(step.gates_h, a.bias_hh, a, b, unit, h);
      state = Cell::forward(x, h, state, saved);
      output = from_float<S>(state.h.v);
    }
    *of_element<1>(a.output, a, t, b, unit) = output;
    if (a.saved) store_saved<Cell>(true, of_element<Cell::kSaved>(a.saved, a, t, b, unit), a.H, saved);
    const bool ends = !a.is_last() && a.starts_anew(t + a.to_next(), b);  // the next matmul reads h
    store_state<Cell>(a, at, ends ? typename Cell::State{} : state);
  });
}

// An element at time t: its state before, what was saved, the gradient after the step; zeros if it is not active.
template <class Cell, class S>
struct BackwardElement {
  int b, unit;
  bool active, anew;
  S h_before = from_float<S>(0.0f);
  typename Cell::State before{};
  typename Cell::Saved saved{};
  typename Cell::State grad;

  FUSED_RNN_DEVICE BackwardElement(const BackwardSteps<S>& a, int t, int at)
      : b(at / a.H),
        unit(at % a.H),
        active(t < a.length(b)),
        anew(a.starts_anew(t, b)),
        grad(initial_grad<Cell>(a, at)) {
    if (!a.is_first() && a.starts_anew(t - a.to_next(), b)) grad = typename Cell::State{};
    if (!active) return;
    const bool is_first = is_first_step(a, t, a.length(b));
    const int t_before = a.step_before(t);
    if (!anew) {
      h_before = *(is_first ? a.hx + at : of_element<1>(a.output, a, t_before, b, unit));
      before.h = to_float(h_before);
      if constexpr (kHasCellState<Cell>)
        before.c = to_float(
            is_first ? a.cx[at]
                     : *rows_on(of_element<Cell::kSaved>(a.saved, a, t_before, b, unit), Cell::kSavedCell, a.H));
    }
    const S* from = of_element<Cell::kSaved>(a.saved, a, t, b, unit);
#pragma unroll
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = to_float(*rows_on(from, k, a.H));
    if (a.grad_output) grad.h = grad.h + to_float(*of_element<1>(a.grad_output, a, t, b, unit));
  }
};

// The candidate's part of grads_x, which goes back through weight_hn before anything else can be computed.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_candidate(const __grid_constant__ BackwardStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const BackwardElement<Cell, S> element(a, t, at);
    const auto grad = element.active ? Cell::candidate_grad(element.grad, element.saved).v : 0.0f;
    of_element<Cell::kGates>(a.grads_x, a, 0, element.b, element.unit)[kHiddenGates<Cell> * a.H] = from_float<S>(grad);
  });
}

// Leaves the direct part of the previous state's gradient in grad_h; the matmul that follows adds the rest. Where a new
// sequence began, the next step ignores both.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_backward(const __grid_constant__ BackwardStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const BackwardElement<Cell, S> element(a, t, at);
    const int b = element.b, unit = element.unit;
    auto grads = no_grads<Cell>();
    grads.prev = element.grad;
    if (element.active)
      grads = step_backward<Cell>(element.grad, element.before, element.saved, load(step.grad_between, at));
    const GradTargets<S> to{of_element<Cell::kGates>(a.grads_x, a, 0, b, unit),
                            of_element<Cell::kGates>(a.grads_h, a, 0, b, unit),
                            of_element<1>(a.h_before, a, 0, b, unit), of_element<1>(a.between, a, 0, b, unit)};
    store_grads<Cell>(true, to, a.H, grads, element.h_before, element.saved[0].v);
    if (element.anew) grads.prev = typename Cell::State{};
    a.grad_h[at] = grads.prev.h.v;
    if constexpr (kHasCellState<Cell>) {
      if (a.is_last())
        a.grad_cx[at] = from_float<S>(grads.prev.c.v);
      else
        a.grad_c[at] = grads.prev.c.v;
    }
  });
}

template <class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) copy_active_elements(const __grid_constant__ ActiveCopy<S> a) {
  for_each(int64_t(a.steps.count) * a.steps.B * a.width, [&](int64_t i) {
    const int64_t row = i / a.width;
    const int b = int(row % a.steps.B), t = int(row / a.steps.B) + a.steps.lowest_time();
    a.to[i] = t < a.steps.length(b) ? a.from[i] : from_float<S>(0.0f);
  });
}

template <class From, class To>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) copy_kept_elements(const __grid_constant__ KeptCopy<From, To> a) {
  const int t = a.steps.time(a.steps.begin);
  for_each_element(a.steps, [&](int at) {
    a.to[at] = a.steps.starts_anew(t, at / a.steps.H) ? from_float<To>(0.0f) : from_float<To>(to_float(a.from[at]));
  });
}

template <class To>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) convert_elements(const __grid_constant__ Conversion<To> a) {
  for_each(a.n, [&](int64_t i) { a.to[i] = from_float<To>(a.from[i]); });
}

}  // namespace fused_rnn
