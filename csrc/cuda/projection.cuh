// The stepwise tier of a layer whose h is projected, h = weight_hr m with the cell's own h as m: a step has two
// matmuls, and a kernel after each. In the kernels of h, the steps have P in place of H, so that places in its arrays
// are as in any other layer.
#pragma once

#include "stepwise.cuh"

namespace fused_rnn {

// Of the state before a step, c.
template <class Cell, class S>
FUSED_RNN_DEVICE NumberOf<Cell> c_before(const ForwardSteps<S>& a, int at) {
  if (a.starts_anew(a.time(a.begin), at / a.H)) return 0.0f;
  return a.is_first() ? to_float(a.cx[at]) : a.c[at];
}

// The cell, after the matmul of weight_hh: m and c.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) projected_forward(const __grid_constant__ ForwardStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H;
    typename Cell::State state{0.0f, c_before<Cell>(a, at)};
    typename Cell::Saved saved{};
    if (t < a.length(b)) {
      NumberOf<Cell> x[Cell::kGates], h[Cell::kGates];
      load_gates<Cell>(a.gates_x, a.bias_ih, a, b, unit, x);
      load_gates<Cell>(step.gates_h, a.bias_hh, a, b, unit, h);
      state = Cell::forward(x, h, state, saved);
    }
    step.between[at] = from_float<S>(state.h.v);
    if (a.saved) store_saved<Cell>(true, of_element<Cell::kSaved>(a.saved, a, t, b, unit), a.H, saved);
    a.c[at] = state.c.v;
    if (a.is_last()) a.cy[at] = from_float<S>(state.c.v);
  });
}

// h, after the matmul of weight_hr.
template <class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads)
    projected_h_elements(const __grid_constant__ ProjectedStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H;
    const bool active = t < a.length(b);
    const S nothing = from_float<S>(0.0f), h = from_float<S>(step.h[at]);
    *of_element<1>(a.output, a, t, b, at % a.H) = active ? h : nothing;
    const bool ends = !a.is_last() && a.starts_anew(t + a.to_next(), b);  // the next matmul reads h
    a.hy[at] = ends ? nothing : active ? h : (a.is_first() ? a.hx : a.hy)[at];
  });
}

// The gradient of h at a step, to grads_output, and h before it, to h_before. The part that goes past an element that
// is not active stays in grad_h, to which the matmul of weight_hh adds.
template <class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads)
    projected_grad_h_elements(const __grid_constant__ ProjectedGradStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H;
    const bool active = t < a.length(b), anew = a.starts_anew(t, b);
    float grad = a.is_first() ? load(a.grad_hy, at) : a.grad_h[at];
    if (!a.is_first() && a.starts_anew(t - a.to_next(), b)) grad = 0.0f;
    S h_before = from_float<S>(0.0f);
    a.grad_h[at] = active ? 0.0f : grad;
    if (active && !anew) {
      const bool is_first = is_first_step(a, t, a.length(b));
      h_before = *(is_first ? a.hx + at : of_element<1>(a.output, a, a.step_before(t), b, unit));
    }
    if (active && a.grad_output) grad += to_float(*of_element<1>(a.grad_output, a, t, b, unit));
    step.grads_output[at] = from_float<S>(active ? grad : 0.0f);
    a.h_before[at] = h_before;
  });
}

// The cell, after the matmul of weight_hr with grads_output.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) projected_backward(const __grid_constant__ BackwardStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H;
    const bool active = t < a.length(b), anew = a.starts_anew(t, b);
    const typename Cell::State grad{step.grad_between[at], a.is_first() ? load(a.grad_cy, at) : a.grad_c[at]};
    auto grads = no_grads<Cell>();
    grads.prev = grad;
    S own = from_float<S>(0.0f);
    if (active) {
      typename Cell::State before{};
      if (!anew)
        before.c = to_float(
            is_first_step(a, t, a.length(b))
                ? a.cx[at]
                : *rows_on(of_element<Cell::kSaved>(a.saved, a, a.step_before(t), b, unit), Cell::kSavedCell, a.H));
      typename Cell::Saved saved;
      const S* from = of_element<Cell::kSaved>(a.saved, a, t, b, unit);
#pragma unroll
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = to_float(*rows_on(from, k, a.H));
      grads = Cell::backward(grad, before, saved);
      own = from_float<S>(Cell::output(saved[Cell::kO], saved[Cell::kC]).v);
    }
    S* const to = of_element<Cell::kGates>(a.grads_x, a, 0, b, unit);
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) *rows_on(to, gate, a.H) = from_float<S>(grads.x[gate].v);
    a.between[at] = own;
    const float grad_c = anew ? 0.0f : grads.prev.c.v;
    a.grad_c[at] = grad_c;
    if (a.is_last()) a.grad_cx[at] = from_float<S>(grad_c);
  });
}

}  // namespace fused_rnn
