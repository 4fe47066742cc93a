// The equations of every cell, forward and backward, once for host and device. `A` is the type that is computed in: a
// scalar or a vector of scalars. Gates are in PyTorch's order. No torch header, no CUDA header.
#pragma once

#include <cmath>

#include "inline.h"

namespace fused_rnn {

template <class A>
FUSED_RNN_INLINE A sigmoid(A x) {
  using std::exp;
  return A(1) / (A(1) + exp(-x));
}

// `value`, and 0 where `by` is not above 0: the ReLU of x is rectified(x, x). NaN in either comes through.
template <class A>
FUSED_RNN_INLINE A rectified(A value, A by) {
  return by <= A(0) ? A(0) : value;
}

// The state of a cell without c.
template <class A>
struct HiddenState {
  A h;
};

// Gradients from one step of the backward. `prev` is the direct path to the previous state only; the path through
// weight_hh is the caller's matmul over `h`.
template <class A, class State, int kGates>
struct StepGrads {
  A x[kGates];  // d loss / d gates_x, in gate order
  A h[kGates];  // d loss / d gates_h, in gate order
  State prev;
};

// In all cells: x is weight_ih x_t + bias_ih, h is weight_hh h_{t-1} + bias_hh, `prev` the state before the step,
// `grad` the gradient of the state after it. What a loop must know of a cell it reads here:
//   kName                  its name in Python
//   kGates                 gates
//   kSaved                 numbers that the backward needs per unit; kSavedCell is the place of c among them, or -1 if
//                          the state is h alone
//   kResetBefore           gates_h of the last gate multiplies r * h instead of h
//   kGradsDiffer           the backward gives x and h different gradients
//   kApart                 number of trailing gates whose x and h parts are not simply added
//   kProjects              h may be projected after the step

// torch.nn.LSTM: gates i, f, g, o.
template <class A>
struct LstmCell {
  static constexpr const char* kName = "lstm";
  enum Gate { kI, kF, kG, kO, kC };
  static constexpr int kGates = 4;
  static constexpr int kSaved = 5;
  static constexpr int kSavedCell = kC;
  static constexpr bool kResetBefore = false;
  static constexpr bool kGradsDiffer = false;
  static constexpr int kApart = 0;
  static constexpr bool kProjects = true;
  struct State {
    A h, c;
  };
  using Saved = A[kSaved];  // i, f, g, o after their activation, and c_t

  FUSED_RNN_INLINE static State forward(const A (&x)[kGates], const A (&h)[kGates], State prev, Saved& s) {
    using std::tanh;
    s[kI] = sigmoid(x[kI] + h[kI]);
    s[kF] = sigmoid(x[kF] + h[kF]);
    s[kG] = tanh(x[kG] + h[kG]);
    s[kO] = sigmoid(x[kO] + h[kO]);
    s[kC] = s[kF] * prev.c + s[kI] * s[kG];
    return {output(s[kO], s[kC]), s[kC]};
  }

  FUSED_RNN_INLINE static A output(A o, A c) {
    using std::tanh;
    return o * tanh(c);
  }

  FUSED_RNN_INLINE static StepGrads<A, State, kGates> backward(State grad, State prev, const Saved& s) {
    using std::tanh;
    const A tanh_c = tanh(s[kC]);
    const A dc = grad.c + grad.h * s[kO] * (A(1) - tanh_c * tanh_c);
    StepGrads<A, State, kGates> d;
    d.x[kI] = dc * s[kG] * s[kI] * (A(1) - s[kI]);
    d.x[kF] = dc * prev.c * s[kF] * (A(1) - s[kF]);
    d.x[kG] = dc * s[kI] * (A(1) - s[kG] * s[kG]);
    d.x[kO] = grad.h * tanh_c * s[kO] * (A(1) - s[kO]);
    for (int k = 0; k < kGates; ++k) d.h[k] = d.x[k];  // x and h enter every gate as one sum
    d.prev = {A(0), dc * s[kF]};
    return d;
  }
};

// torch.nn.GRU: gates r, z, n; the reset gate acts after the matmul: n = tanh(n_x + r * n_h).
template <class A>
struct GruCell {
  static constexpr const char* kName = "gru";
  enum Gate { kR, kZ, kN, kNh };
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;
  static constexpr int kSavedCell = -1;
  static constexpr bool kResetBefore = false;
  static constexpr bool kGradsDiffer = true;
  static constexpr int kApart = 1;
  static constexpr bool kProjects = false;
  using State = HiddenState<A>;
  using Saved = A[kSaved];  // r, z, n after their activation, and n_h

  FUSED_RNN_INLINE static State forward(const A (&x)[kGates], const A (&h)[kGates], State prev, Saved& s) {
    using std::tanh;
    s[kR] = sigmoid(x[kR] + h[kR]);
    s[kZ] = sigmoid(x[kZ] + h[kZ]);
    s[kN] = tanh(x[kN] + s[kR] * h[kN]);
    s[kNh] = h[kN];
    return {s[kN] + s[kZ] * (prev.h - s[kN])};
  }

  FUSED_RNN_INLINE static StepGrads<A, State, kGates> backward(State grad, State prev, const Saved& s) {
    StepGrads<A, State, kGates> d;
    d.x[kN] = grad.h * (A(1) - s[kZ]) * (A(1) - s[kN] * s[kN]);
    d.x[kR] = d.x[kN] * s[kNh] * s[kR] * (A(1) - s[kR]);
    d.x[kZ] = grad.h * (prev.h - s[kN]) * s[kZ] * (A(1) - s[kZ]);
    d.h[kR] = d.x[kR];
    d.h[kZ] = d.x[kZ];
    d.h[kN] = d.x[kN] * s[kR];
    d.prev = {grad.h * s[kZ]};
    return d;
  }
};

// Cho et al. 2014 with PyTorch's meaning of z: gates r, z, n; the reset gate acts before the matmul, so that h[kN] is
// weight_hn (r * h_{t-1}) + bias_hn. A step takes two matmuls: forward first asks `reset` for r * h_{t-1}, backward
// first asks `candidate_grad` for the gradient that goes back through weight_hn.
template <class A>
struct GruResetBeforeCell {
  static constexpr const char* kName = "gru(reset_after=False)";
  enum Gate { kR, kZ, kN };
  static constexpr int kGates = 3;
  static constexpr int kSaved = 3;
  static constexpr int kSavedCell = -1;
  static constexpr bool kResetBefore = true;
  static constexpr bool kGradsDiffer = false;
  static constexpr int kApart = 0;
  static constexpr bool kProjects = false;
  using State = HiddenState<A>;
  using Saved = A[kSaved];  // r, z, n after their activation

  FUSED_RNN_INLINE static A reset(A r_x, A r_h, State prev) { return sigmoid(r_x + r_h) * prev.h; }

  FUSED_RNN_INLINE static State forward(const A (&x)[kGates], const A (&h)[kGates], State prev, Saved& s) {
    using std::tanh;
    s[kR] = sigmoid(x[kR] + h[kR]);
    s[kZ] = sigmoid(x[kZ] + h[kZ]);
    s[kN] = tanh(x[kN] + h[kN]);
    return {s[kN] + s[kZ] * (prev.h - s[kN])};
  }

  FUSED_RNN_INLINE static A candidate_grad(State grad, const Saved& s) {
    return grad.h * (A(1) - s[kZ]) * (A(1) - s[kN] * s[kN]);
  }

  // grad_reset: d loss / d (r * h_{t-1}), the candidate's gradient back through weight_hn
  FUSED_RNN_INLINE static StepGrads<A, State, kGates> backward(State grad, State prev, const Saved& s, A grad_reset) {
    StepGrads<A, State, kGates> d;
    d.x[kN] = candidate_grad(grad, s);
    d.x[kR] = grad_reset * prev.h * s[kR] * (A(1) - s[kR]);
    d.x[kZ] = grad.h * (prev.h - s[kN]) * s[kZ] * (A(1) - s[kZ]);
    for (int k = 0; k < kGates; ++k) d.h[k] = d.x[k];  // x and h enter every gate as one sum
    d.prev = {grad.h * s[kZ] + grad_reset * s[kR]};
    return d;
  }
};

// torch.nn.RNN: one gate, and the new state is its activation.
template <class A, class Activation>
struct RnnCell {
  static constexpr const char* kName = Activation::kCellName;
  static constexpr int kGates = 1;
  static constexpr int kSaved = 1;
  static constexpr int kSavedCell = -1;
  static constexpr bool kResetBefore = false;
  static constexpr bool kGradsDiffer = false;
  static constexpr int kApart = 0;
  static constexpr bool kProjects = false;
  using State = HiddenState<A>;
  using Saved = A[kSaved];  // h_t

  FUSED_RNN_INLINE static State forward(const A (&x)[kGates], const A (&h)[kGates], State, Saved& s) {
    s[0] = Activation::of(x[0] + h[0]);
    return {s[0]};
  }

  FUSED_RNN_INLINE static StepGrads<A, State, kGates> backward(State grad, State, const Saved& s) {
    const A d = Activation::backward(grad.h, s[0]);
    return {{d}, {d}, {A(0)}};
  }
};

struct Tanh {
  static constexpr const char* kCellName = "rnn_tanh";
  template <class A>
  FUSED_RNN_INLINE static A of(A x) {
    using std::tanh;
    return tanh(x);
  }
  template <class A>
  FUSED_RNN_INLINE static A backward(A grad, A y) {
    return grad * (A(1) - y * y);
  }
};

struct Relu {
  static constexpr const char* kCellName = "rnn_relu";
  template <class A>
  FUSED_RNN_INLINE static A of(A x) {
    return rectified(x, x);
  }
  template <class A>
  FUSED_RNN_INLINE static A backward(A grad, A y) {
    return rectified(grad, y);
  }
};

template <class A>
struct RnnTanhCell : RnnCell<A, Tanh> {};
template <class A>
struct RnnReluCell : RnnCell<A, Relu> {};

// Every cell. Loops, kernels and ops are made for each cell of this list.
template <template <class> class... Cells>
struct CellList {};
using AllCells = CellList<LstmCell, GruCell, GruResetBeforeCell, RnnTanhCell, RnnReluCell>;

}  // namespace fused_rnn
