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
                                 Real (&to)[Cell::kGates]) {
#pragma unroll
  for (int gate = 0; gate < Cell::kGates; ++gate)
    to[gate] = gates[(b * Cell::kGates + gate) * a.H + unit] + load(bias, gate * a.H + unit);
}

// reset_h = r * h, what the candidate's matmul multiplies. Of gates_h, r's part is there.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_reset(const __grid_constant__ ForwardStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H, r = b * Cell::kGates * a.H + unit;
    const Real r_x = a.gates_x[r] + load(a.bias_ih, unit), r_h = step.gates_h[r] + load(a.bias_hh, unit);
    step.reset_h[at] = from_float<S>(Cell::reset(r_x, r_h, initial_state<Cell>(a, at)).v);
  });
}

template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_forward(const __grid_constant__ ForwardStep<S> step) {
  const ForwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H;
    typename Cell::State state = initial_state<Cell>(a, at);
    if (t < a.length(b)) {
      Real x[Cell::kGates], h[Cell::kGates];
      load_gates<Cell>(a.gates_x, a.bias_ih, a, b, unit, x);
      load_gates<Cell>(step.gates_h, a.bias_hh, a, b, unit, h);
      step_forward<Cell>(a, t, b, unit, x, h, state);
    } else {
      skip_forward<Cell>(a, t, b, unit);
    }
    store_state<Cell>(a, at, state);
  });
}

// d loss / d state after step t, with what the output brings.
template <class Cell, class S>
FUSED_RNN_DEVICE typename Cell::State grad_after(const BackwardSteps<S>& a, int at, const BackwardInputs<Cell>& in) {
  typename Cell::State grad = initial_grad<Cell>(a, at);
  grad.h = grad.h + in.grad_output;
  return grad;
}

// The candidate's part of grads_x, which goes back through weight_hn before anything else can be computed.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_candidate(const __grid_constant__ BackwardStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H, length = a.length(b);
    Real grad = 0.0f;
    if (t < length) {
      const BackwardInputs<Cell> in = load_inputs<Cell>(a, t, b, length, unit);
      grad = Cell::candidate_grad(grad_after<Cell>(a, at, in), in.saved);
    }
    a.grads_x[(b * Cell::kGates + kHiddenGates<Cell>)*a.H + unit] = from_float<S>(grad.v);
  });
}

// Leaves the direct part of the previous state's gradient in grad_h; the matmul that follows adds the rest.
template <class Cell, class S>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) stepwise_backward(const __grid_constant__ BackwardStep<S> step) {
  const BackwardSteps<S>& a = step.steps;
  const int t = a.time(a.begin);
  for_each_element(a, [&](int at) {
    const int b = at / a.H, unit = at % a.H, length = a.length(b);
    typename Cell::State grad;
    if (t < length) {
      const BackwardInputs<Cell> in = load_inputs<Cell>(a, t, b, length, unit);
      grad = grad_after<Cell>(a, at, in);
      const auto grads = step_backward<Cell>(grad, in, load(step.grad_reset, at));
      store_grads<Cell>(a, t, b, unit, grads, in.before.h.v, in.saved[0].v);
    } else {
      grad = initial_grad<Cell>(a, at);
      store_grads<Cell>(a, t, b, unit, no_grads<Cell>(), 0.0f, 0.0f);
    }
    a.grad_h[at] = grad.h.v;
    if constexpr (kHasCellState<Cell>) {
      if (a.is_last())
        a.grad_cx[at] = from_float<S>(grad.c.v);
      else
        a.grad_c[at] = grad.c.v;
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

template <class To>
FUSED_RNN_KERNEL void __launch_bounds__(kStepThreads) convert_elements(const __grid_constant__ Conversion<To> a) {
  for_each(a.n, [&](int64_t i) { a.to[i] = from_float<To>(a.from[i]); });
}

}  // namespace fused_rnn
