// One layer in one direction, forward and backward. The batch is cut into slices, one a thread, that run all their
// steps without meeting. Included by each instruction set's source file.
//
// Packed weights are in gate panels: panel p holds the columns of units [p L, p L + L), L lanes a vector, for all gates
// of a unit side by side, so that one tile of sums is all that the cell needs.
#pragma once

#include <cstdint>

#include "../recurrence.h"
#include "gemm.inl.h"
#include "parallel.h"

namespace fused_rnn {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // projected input of a chunk of steps: stays in the second-level cache
constexpr int64_t kChunkRows = 256;          // rows (step, batch) whose gradients are multiplied while still in cache
constexpr int64_t kSumBlock = 32;            // products in a part of a sum over rows: PyTorch's small sums are as exact

FUSED_RNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_RNN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FUSED_RNN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- Sizes and places that depend on the vector's width ----

template <class A>
struct Units {
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  int64_t H;

  int64_t panels() const { return ceil_div(H, kLanes); }
  int64_t padded() const { return panels() * kLanes; }                       // H in whole vectors
  int count(int64_t p) const { return int(least(kLanes, H - p * kLanes)); }  // units of panel p
};

// Rows [gate0*H, (gate0+NG)*H) of `weight` [G*H, K], and of `bias` if there is one, in gate panels.
template <int NG, class A>
class GatePanels {
  static constexpr int64_t kLanes = Vec<A>::kLanes;

 public:
  GatePanels(int64_t K, int64_t H)
      : K_(K), units_{H}, weight_(units_.panels() * K * NG * kLanes), bias_(units_.panels() * NG * kLanes) {}

  template <class S>
  void pack(int64_t p, const S* weight, const S* bias, int gate0) {
    const int n = units_.count(p);
    A* to = weight_ + p * K_ * NG * kLanes;
    for (int64_t k0 = 0; k0 < K_; k0 += kLanes)  // square blocks: rows are read and columns written in cache
      for (int g = 0; g < NG; ++g)
        for (int lane = 0; lane < kLanes; ++lane) {
          const S* from = weight + ((gate0 + g) * units_.H + p * kLanes + lane) * K_;
          for (int64_t k = k0; k < least(k0 + kLanes, K_); ++k)
            to[(k * NG + g) * kLanes + lane] = lane < n ? A(from[k]) : A(0);
        }
    for (int g = 0; g < NG; ++g) {
      const int64_t row0 = (gate0 + g) * units_.H + p * kLanes;
      store(bias_ + (p * NG + g) * kLanes, bias ? load<A>(bias + row0, n) : Vec<A>(A(0)));
    }
  }

  // emit(m, sums): row m's NG vectors of `a` times panel p, without the bias
  template <class Emit>
  FUSED_RNN_INLINE void multiply(int64_t p, int64_t M, Left<A> left, const Emit& emit) const {
    rows_times_panel<NG>(M, K_, left, weight_ + p * K_ * NG * kLanes, emit);
  }

  FUSED_RNN_INLINE Vec<A> bias(int64_t p, int g) const { return load<A>(bias_ + (p * NG + g) * kLanes); }

 private:
  int64_t K_;
  Units<A> units_;
  Scratch<A> weight_, bias_;
};

// Rows that are A already are used where they are; others are converted into `converted` first.
template <class A, class S>
FUSED_RNN_INLINE const A* as_accumulate(const S* from, int64_t n, A* converted) {
  if constexpr (std::is_same<S, A>::value) {
    return from;
  } else {
    for (int64_t i = 0; i < n; i += Vec<A>::kLanes) {
      const int left = int(least(Vec<A>::kLanes, n - i));
      store(converted + i, load<A>(from + i, left), left);
    }
    return converted;
  }
}

template <class S, class A>
constexpr bool kConverted = !std::is_same<S, A>::value;

// In as many partial sums as a vector has lanes.
template <class A>
FUSED_RNN_INLINE A sum_of(const A* from, int64_t n) {
  constexpr int64_t kLanes = Vec<A>::kLanes;
  Vec<A> sums(A(0));
  for (int64_t i = 0; i < n; i += kLanes) sums += load<A>(from + i, int(least(kLanes, n - i)));
  A total(0);
  for (int lane = 0; lane < kLanes; ++lane) total += sums.v[lane];
  return total;
}

// Copies n numbers, or zeros where there is no source, into [padded] numbers of which the rest becomes zero.
template <class A, class S>
FUSED_RNN_INLINE void copy_padded(const S* from, int64_t n, A* to, int64_t padded) {
  for (int64_t i = 0; i < padded; ++i) to[i] = from && i < n ? A(from[i]) : A(0);
}

// The number of slices of the batch, and where slice s begins.
struct Slices {
  int64_t B, count;
  FUSED_RNN_INLINE explicit Slices(int64_t B) : B(B), count(most(1, least(B, thread_count()))) {}
  FUSED_RNN_INLINE int64_t begin(int64_t s) const { return B * s / count; }
  FUSED_RNN_INLINE int64_t rows() const { return ceil_div(B, count); }  // of the largest slice
};

// ---- Forward ----

template <class Cell, class S, class A>
class Forward {
  using V = Vec<A>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = Cell::kResetBefore ? kGates - 1 : kGates;  // gates whose matmul takes h itself
  static constexpr int64_t kLanes = V::kLanes;

 public:
  explicit Forward(const ForwardArgs<S>& args)
      : args_(args),
        units_{args.H},
        input_(args.I, args.H),
        hidden_(args.H, args.H),
        candidate_(Cell::kResetBefore ? args.H : 0, args.H) {}

  void run() {
    const auto& a = args_;
    parallel_for(units_.panels(), double(kGates * kLanes * (a.I + a.H)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        input_.pack(p, a.weight_ih, a.bias_ih, 0);
        hidden_.pack(p, a.weight_hh, a.bias_hh, 0);
        if constexpr (Cell::kResetBefore) candidate_.pack(p, a.weight_hh, a.bias_hh, kFirst);
      }
    });

    const Slices slices(a.B);
    const int64_t rows = slices.rows(), padded = units_.padded();
    const int64_t steps = most(1, least(a.T, kChunkBytes / int64_t(rows * kGates * padded * sizeof(A))));
    const int64_t gates_x = steps * rows * kGates * padded;
    const int64_t x = kConverted<S, A> ? steps * rows * a.I : 0;
    const int64_t states = (Cell::kResetBefore ? 6 : 3) * rows * padded;
    const int64_t each = gates_x + states + x;
    const Scratch<A> scratch(slices.count * each);
    parallel_for(slices.count, 2.0 * a.T * rows * kGates * a.H * (a.I + a.H), [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        A* own = scratch + s * each;
        Slice slice{slices.begin(s),       slices.begin(s + 1) - slices.begin(s), steps, own, own + gates_x,
                    own + gates_x + states};
        run_slice(slice);
      }
    });
  }

 private:
  struct Slice {
    int64_t b0, rows;  // of the batch
    int64_t steps;     // of a chunk
    A* gates_x;        // [steps, rows, panels, kGates, kLanes]
    A* states;         // h twice, c; reset before: r * h, and what r and z were made of: [rows, padded] each
    A* x;              // [steps, rows, I], unless x is of type A already
  };

  void run_slice(Slice& s) {
    const auto& a = args_;
    const int64_t padded = units_.padded(), size = s.rows * padded;
    A *h = s.states, *h_next = h + size, *c = h_next + size;
    for (int64_t m = 0; m < s.rows; ++m) {
      copy_padded(a.hx + (s.b0 + m) * a.H, a.H, h + m * padded, padded);
      if constexpr (Cell::kSavedCell >= 0) copy_padded(a.cx + (s.b0 + m) * a.H, a.H, c + m * padded, padded);
    }
    for (int64_t done = 0; done < a.T; done += s.steps) {
      const int64_t n = least(s.steps, a.T - done);
      const int64_t t0 = a.reverse ? a.T - done - n : done;
      project(s, t0, n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = a.reverse ? t0 + n - 1 - i : t0 + i;
        step(s, t, s.gates_x + (t - t0) * s.rows * kGates * padded, h, h_next, c);
        A* const swapped = h;
        h = h_next;
        h_next = swapped;
      }
    }
    for (int64_t m = 0; m < s.rows; ++m)
      for (int64_t j = 0; j < a.H; ++j) {
        a.hy[(s.b0 + m) * a.H + j] = S(h[m * padded + j]);
        if constexpr (Cell::kSavedCell >= 0) a.cy[(s.b0 + m) * a.H + j] = S(c[m * padded + j]);
      }
  }

  // gates_x of steps [t0, t0 + n): a panel of weight_ih meets all of them while it is in cache.
  void project(Slice& s, int64_t t0, int64_t n) {
    const auto& a = args_;
    for (int64_t p = 0; p < units_.panels(); ++p)
      for (int64_t i = 0; i < n; ++i) {
        const S* x = a.x + ((t0 + i) * a.B + s.b0) * a.I;
        A* buffer = s.x + i * s.rows * a.I;
        const A* rows = p == 0 ? as_accumulate(x, s.rows * a.I, buffer)
                               : (kConverted<S, A> ? buffer : reinterpret_cast<const A*>(x));
        A* to = s.gates_x + (i * s.rows * units_.panels() + p) * kGates * kLanes;
        input_.multiply(p, s.rows, {rows, a.I}, [&](int64_t m, const A* sums) {
          for (int g = 0; g < kGates; ++g)
            store(to + (m * units_.panels() * kGates + g) * kLanes, load<A>(sums + g * kLanes) + input_.bias(p, g));
        });
      }
  }

  // One step of a slice: reads h, updates c, writes h_next.
  void step(Slice& s, int64_t t, const A* gates_x, const A* h, A* h_next, A* c) {
    const auto& a = args_;
    const int64_t padded = units_.padded();
    const int64_t active = a.active_rows(t, s.b0, s.b0 + s.rows) - s.b0;
    [[maybe_unused]] A* const reset = s.states + 3 * s.rows * padded;
    [[maybe_unused]] A* const first = reset + s.rows * padded;  // [rows, panels, kFirst, kLanes]
    for (int64_t p = 0; p < units_.panels(); ++p) {
      hidden_.multiply(p, active, {h, padded}, [&](int64_t m, const A* sums) {
        V gates_h[kGates];
        for (int g = 0; g < kFirst; ++g) gates_h[g] = load<A>(sums + g * kLanes) + hidden_.bias(p, g);
        if constexpr (Cell::kResetBefore) {
          const typename Cell::State prev{load<A>(h + m * padded + p * kLanes)};
          const V r_x = load<A>(gates_x + (m * units_.panels() + p) * kGates * kLanes);
          store(reset + m * padded + p * kLanes, Cell::reset(r_x, gates_h[0], prev));
          for (int g = 0; g < kFirst; ++g) store(first + ((m * units_.panels() + p) * kFirst + g) * kLanes, gates_h[g]);
        } else {
          finish(s, t, p, m, gates_x, gates_h, h, h_next, c);
        }
      });
    }
    if constexpr (Cell::kResetBefore)
      for (int64_t p = 0; p < units_.panels(); ++p)
        candidate_.multiply(p, active, {reset, padded}, [&](int64_t m, const A* sums) {
          V gates_h[kGates];
          for (int g = 0; g < kFirst; ++g)
            gates_h[g] = load<A>(first + ((m * units_.panels() + p) * kFirst + g) * kLanes);
          gates_h[kFirst] = load<A>(sums) + candidate_.bias(p, 0);
          finish(s, t, p, m, gates_x, gates_h, h, h_next, c);
        });
    for (int64_t m = active; m < s.rows; ++m)
      for (int64_t p = 0; p < units_.panels(); ++p) skip(s, t, p, m, h, h_next);
  }

  // The cell for row m and the units of panel p, its results to memory.
  FUSED_RNN_INLINE void finish(const Slice& s, int64_t t, int64_t p, int64_t m, const A* gates_x,
                               const V (&gates_h)[kGates], const A* h, A* h_next, A* c) const {
    const auto& a = args_;
    const int64_t b = s.b0 + m, at = m * units_.padded() + p * kLanes;
    if (t >= a.length(b)) return skip(s, t, p, m, h, h_next);
    V x[kGates];
    for (int g = 0; g < kGates; ++g) x[g] = load<A>(gates_x + ((m * units_.panels() + p) * kGates + g) * kLanes);
    typename Cell::State prev;
    prev.h = load<A>(h + at);
    if constexpr (Cell::kSavedCell >= 0) prev.c = load<A>(c + at);
    typename Cell::Saved saved;
    const typename Cell::State next = Cell::forward(x, gates_h, prev, saved);
    const int n = units_.count(p);
    const int64_t row = (t * a.B + b) * a.H + p * kLanes;
    store(a.output + row, next.h, n);
    store(h_next + at, rounded<S>(next.h));
    if constexpr (Cell::kSavedCell >= 0) store(c + at, next.c);
    if (a.saved)
      for (int k = 0; k < Cell::kSaved; ++k)
        store(a.saved + ((t * a.B + b) * Cell::kSaved + k) * a.H + p * kLanes, saved[k], n);
  }

  // Row m takes no part in step t: its state stays, its output is zero, and so is what is saved.
  void skip(const Slice& s, int64_t t, int64_t p, int64_t m, const A* h, A* h_next) const {
    const auto& a = args_;
    const int64_t b = s.b0 + m, at = m * units_.padded() + p * kLanes;
    const int n = units_.count(p);
    store(h_next + at, load<A>(h + at));
    store(a.output + (t * a.B + b) * a.H + p * kLanes, V(A(0)), n);
    if (a.saved)
      for (int k = 0; k < Cell::kSaved; ++k)
        store(a.saved + ((t * a.B + b) * Cell::kSaved + k) * a.H + p * kLanes, V(A(0)), n);
  }

  const ForwardArgs<S>& args_;
  const Units<A> units_;
  GatePanels<kGates, A> input_;
  GatePanels<kFirst, A> hidden_;
  GatePanels<1, A> candidate_;  // reset before: weight_hn, which multiplies r * h
};

// ---- Backward ----
//
// Chunks of steps, last first. In each, the slices run their steps backward and leave the gradients of the gates in
// grads_x and grads_h; then the sums over the chunk's rows (grad_weight, grad_bias) and its grad_x are products of
// matrices that are still in cache. Every element is summed in one fixed order.

template <class Cell, class S, class A>
class Backward {
  using V = Vec<A>;
  using Grads = StepGrads<V, typename Cell::State, Cell::kGates>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = Cell::kResetBefore ? kGates - 1 : kGates;  // gates whose matmul takes h itself
  static constexpr int64_t kLanes = V::kLanes;

 public:
  explicit Backward(const BackwardArgs<S>& args)
      : args_(args),
        units_{args.H},
        steps_(most(1, least(args.T, kChunkRows / args.B))),
        hidden_{kFirst * args.H, args.H},
        candidate_{Cell::kResetBefore ? args.H : 0, args.H},
        input_{args.grad_x ? kGates * args.H : 0, args.I},
        hidden_weight_(hidden_.elements()),
        candidate_weight_(candidate_.elements()),
        input_weight_(input_.elements()),
        grads_x_(steps_ * args.B * kGates * args.H),
        grads_h_(Cell::kGradsDiffer ? steps_ * args.B * kGates * args.H : 0),
        grad_states_((Cell::kResetBefore ? 3 : 2) * args.B * units_.padded()) {}

  void run() {
    const auto& a = args_;
    pack_weights();
    for (int64_t b = 0; b < a.B; ++b) {
      copy_padded(a.grad_hy ? a.grad_hy + b * a.H : nullptr, a.H, grad_h(b), units_.padded());
      if constexpr (Cell::kSavedCell >= 0)
        copy_padded(a.grad_cy ? a.grad_cy + b * a.H : nullptr, a.H, grad_c(b), units_.padded());
    }
    WeightGrads weights(args_, a.grad_weight_ih ? steps_ * a.B : 0);
    for (int64_t done = 0; done < a.T; done += steps_) {  // in the opposite order of the forward's
      const int64_t n = least(steps_, a.T - done);
      const int64_t t0 = a.reverse ? done : a.T - done - n;
      run_steps(t0, n);
      if (a.grad_x) add_grad_x(t0, n);
      if (a.grad_weight_ih) weights.add(t0, n, grads_x_, grads_h());
    }
    weights.finish();
    for (int64_t b = 0; b < a.B; ++b)
      for (int64_t j = 0; j < a.H; ++j) {
        a.grad_hx[b * a.H + j] = S(grad_h(b)[j]);
        if constexpr (Cell::kSavedCell >= 0) a.grad_cx[b * a.H + j] = S(grad_c(b)[j]);
      }
  }

 private:
  A* grad_h(int64_t b) const { return grad_states_ + b * units_.padded(); }
  A* grad_c(int64_t b) const { return grad_h(args_.B + b); }
  A* grad_reset(int64_t b) const { return grad_h(2 * args_.B + b); }  // of r * h
  A* grads_h() const { return Cell::kGradsDiffer ? grads_h_ : grads_x_; }

  void pack_weights() {
    const auto& a = args_;
    const auto pack = [](const Panels<A>& panels, A* packed, const S* weight) {
      if (panels.K == 0) return;
      parallel_for(panels.count(), double(panels.K * kMaxVectors * kLanes), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) panels.pack(p, packed, [&](int64_t k) { return weight + k * panels.N; });
      });
    };
    pack(hidden_, hidden_weight_, a.weight_hh);
    pack(candidate_, candidate_weight_, a.weight_hh + kFirst * a.H * a.H);
    pack(input_, input_weight_, a.weight_ih);
  }

  void run_steps(int64_t t0, int64_t n) {
    const auto& a = args_;
    const Slices slices(a.B);
    parallel_for(slices.count, 2.0 * n * slices.rows() * kGates * a.H * a.H, [&](int64_t begin, int64_t end) {
      const int64_t b0 = slices.begin(begin), b1 = slices.begin(end);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = a.reverse ? t0 + i : t0 + n - 1 - i;
        step(t, (t - t0) * a.B, b0, b1);
      }
    });
  }

  // Step t of rows [b0, b1): from the gradient of the state after it to that of the state before it. `row0` is the
  // place of row 0 of this step in grads_x and grads_h.
  void step(int64_t t, int64_t row0, int64_t b0, int64_t b1) {
    const auto& a = args_;
    const int64_t active = a.active_rows(t, b0, b1), width = kGates * a.H;
    if constexpr (Cell::kResetBefore) {
      for (int64_t b = b0; b < active; ++b)
        for (int64_t p = 0; p < units_.panels(); ++p) {
          A* to = grads_x_ + (row0 + b) * width + kFirst * a.H + p * kLanes;
          V grad(A(0));
          if (t < a.length(b)) grad = Cell::candidate_grad(grad_state(t, b, p), Saved(*this, t, b, p).s);
          store(to, grad, units_.count(p));
        }
      for (int64_t p = 0; p < candidate_.count(); ++p)
        candidate_.multiply(p, candidate_weight_, active - b0, {grads_x_ + (row0 + b0) * width + kFirst * a.H, width},
                            [&](int64_t m, int64_t column, int64_t n, const A* sums) {
                              for (int64_t j = 0; j < n; ++j) grad_reset(b0 + m)[column + j] = sums[j];
                            });
    }
    for (int64_t b = b0; b < b1; ++b)
      for (int64_t p = 0; p < units_.panels(); ++p) {
        if (t < a.length(b))
          cell(t, row0 + b, b, p);
        else
          for (int g = 0; g < kGates; ++g) store_grads(row0 + b, g, p, V(A(0)), V(A(0)));
      }
    for (int64_t p = 0; p < hidden_.count(); ++p)
      hidden_.multiply(p, hidden_weight_, active - b0, {grads_h() + (row0 + b0) * width, width},
                       [&](int64_t m, int64_t column, int64_t n, const A* sums) {
                         for (int64_t j = 0; j < n; ++j) grad_h(b0 + m)[column + j] += sums[j];
                       });
  }

  // The cell's backward for row b and the units of panel p; leaves the direct part of the previous state's gradient.
  FUSED_RNN_INLINE void cell(int64_t t, int64_t row, int64_t b, int64_t p) {
    const auto& a = args_;
    const int64_t unit = p * kLanes;
    const int n = units_.count(p);
    const bool first = t == a.first_step(b);
    const int64_t before = a.step_before(t) * a.B + b;
    typename Cell::State prev;
    prev.h = load<A>(first ? a.hx + b * a.H + unit : a.output + before * a.H + unit, n);
    if constexpr (Cell::kSavedCell >= 0)
      prev.c = first ? load<A>(a.cx + b * a.H + unit, n)
                     : load<A>(a.saved + (before * Cell::kSaved + Cell::kSavedCell) * a.H + unit, n);
    const typename Cell::State grad = grad_state(t, b, p);
    const Saved saved(*this, t, b, p);
    Grads d;
    if constexpr (Cell::kResetBefore)
      d = Cell::backward(grad, prev, saved.s, load<A>(grad_reset(b) + unit));
    else
      d = Cell::backward(grad, prev, saved.s);
    for (int g = 0; g < kGates; ++g) store_grads(row, g, p, d.x[g], d.h[g]);
    store(grad_h(b) + unit, d.prev.h);
    if constexpr (Cell::kSavedCell >= 0) store(grad_c(b) + unit, d.prev.c);
  }

  // d loss / d state after step t
  FUSED_RNN_INLINE typename Cell::State grad_state(int64_t t, int64_t b, int64_t p) const {
    const auto& a = args_;
    typename Cell::State grad;
    grad.h = load<A>(grad_h(b) + p * kLanes);
    if (a.grad_output) grad.h += load<A>(a.grad_output + (t * a.B + b) * a.H + p * kLanes, units_.count(p));
    if constexpr (Cell::kSavedCell >= 0) grad.c = load<A>(grad_c(b) + p * kLanes);
    return grad;
  }

  struct Saved {
    typename Cell::Saved s;
    FUSED_RNN_INLINE Saved(const Backward& pass, int64_t t, int64_t b, int64_t p) {
      const auto& a = pass.args_;
      for (int k = 0; k < Cell::kSaved; ++k)
        s[k] = load<A>(a.saved + ((t * a.B + b) * Cell::kSaved + k) * a.H + p * kLanes, pass.units_.count(p));
    }
  };

  FUSED_RNN_INLINE void store_grads(int64_t row, int g, int64_t p, V grad_x, V grad_h) const {
    const int64_t at = (row * kGates + g) * args_.H + p * kLanes;
    store(grads_x_ + at, grad_x, units_.count(p));
    if constexpr (Cell::kGradsDiffer) store(grads_h_ + at, grad_h, units_.count(p));
  }

  // grad_x of steps [t0, t0 + n) = grads_x weight_ih
  void add_grad_x(int64_t t0, int64_t n) {
    const auto& a = args_;
    const int64_t rows = n * a.B, width = kGates * a.H;
    const int64_t block = 4 * kTileRows<kMaxVectors>;
    parallel_for(ceil_div(rows, block), 2.0 * block * width * a.I, [&](int64_t begin, int64_t end) {
      const int64_t r0 = begin * block, count = least(end * block, rows) - r0;
      for (int64_t p = 0; p < input_.count(); ++p)
        input_.multiply(p, input_weight_, count, {grads_x_ + r0 * width, width},
                        [&](int64_t m, int64_t column, int64_t n, const A* sums) {
                          S* to = a.grad_x + (t0 * a.B + r0 + m) * a.I + column;
                          for (int64_t j = 0; j < n; ++j) to[j] = S(sums[j]);
                        });
    });
  }

  // The gradients of the weights and biases: sums over all rows, a chunk at a time.
  class WeightGrads {
   public:
    WeightGrads(const BackwardArgs<S>& args, int64_t rows)
        : args_(args),
          rows_(rows),
          packed_x_(panels(rows, args.I).elements()),
          packed_h_(panels(rows, args.H).elements()),
          packed_reset_(Cell::kResetBefore ? panels(rows, args.H).elements() : 0),
          zeros_(most(args.I, args.H)),
          reset_(Cell::kResetBefore ? rows * args.H : 0),
          ih_(size() * args.I),
          hh_(size() * args.H),
          bias_ih_(size()),
          bias_hh_(size()) {
      for (int64_t i = 0; i < most(args.I, args.H); ++i) zeros_[i] = S(A(0));
      for (int64_t i = 0; i < size() * args.I; ++i) ih_[i] = A(0);
      for (int64_t i = 0; i < size() * args.H; ++i) hh_[i] = A(0);
      for (int64_t i = 0; i < size(); ++i) bias_ih_[i] = bias_hh_[i] = A(0);
    }

    void add(int64_t t0, int64_t n, const A* grads_x, const A* grads_h) {
      const auto& a = args_;
      const int64_t rows = n * a.B, width = kGates * a.H;
      const Panels<A> x = panels(rows, a.I), h = panels(rows, a.H);
      pack(x, packed_x_,
           [&](int64_t k) { return is_active(t0, k) ? a.x + (t0 * a.B + k) * a.I : static_cast<const S*>(zeros_); });
      pack(h, packed_h_, [&](int64_t k) { return h_before(t0, k); });
      if constexpr (Cell::kResetBefore) {
        for (int64_t k = 0; k < rows; ++k)
          for (int64_t j = 0; j < a.H; ++j)
            reset_[k * a.H + j] = A(h_before(t0, k)[j]) * a.saved[(t0 * a.B + k) * Cell::kSaved * a.H + j];
        pack(h, packed_reset_, [&](int64_t k) { return static_cast<const A*>(reset_) + k * a.H; });
      }
      // Blocks of gate rows; none crosses from the gates that multiply h to the one that multiplies r * h.
      constexpr int64_t block = kTileRows<kMaxVectors>;
      const int64_t first = kFirst * a.H, split = ceil_div(first, block),
                    blocks = split + ceil_div(width - first, block);
      parallel_for(blocks, 2.0 * rows * block * (a.I + a.H), [&](int64_t begin, int64_t end) {
        const Scratch<A> columns(rows * block);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t r0 = i < split ? i * block : first + (i - split) * block;
          const int64_t count = least(block, (i < split ? first : width) - r0);
          add_block(x, packed_x_, rows, grads_x, r0, count, columns, ih_, bias_ih_);
          add_block(h, i < split ? packed_h_ : packed_reset_, rows, grads_h, r0, count, columns, hh_, bias_hh_);
        }
      });
    }

    void finish() const {
      if (rows_ == 0) return;
      const auto write = [](S* to, const A* from, int64_t n) {
        for (int64_t i = 0; to && i < n; ++i) to[i] = S(from[i]);
      };
      write(args_.grad_weight_ih, ih_, size() * args_.I);
      write(args_.grad_weight_hh, hh_, size() * args_.H);
      write(args_.grad_bias_ih, bias_ih_, size());
      write(args_.grad_bias_hh, bias_hh_, size());
    }

   private:
    static Panels<A> panels(int64_t rows, int64_t columns) { return {rows, columns}; }
    int64_t size() const { return rows_ ? kGates * args_.H : 0; }
    bool is_active(int64_t t0, int64_t k) const { return t0 + k / args_.B < args_.length(k % args_.B); }

    // What weight_hh multiplied in row k of the chunk. Rows that were not active have no gradient; zero keeps it so
    // even where the padding holds NaN.
    const S* h_before(int64_t t0, int64_t k) const {
      const auto& a = args_;
      const int64_t t = t0 + k / a.B, b = k % a.B;
      if (!is_active(t0, k)) return zeros_;
      return t == a.first_step(b) ? a.hx + b * a.H : a.output + (a.step_before(t) * a.B + b) * a.H;
    }

    template <class RowOf>
    static void pack(const Panels<A>& panels, A* packed, const RowOf& row_of) {
      parallel_for(panels.count(), double(panels.K * kMaxVectors * kLanes), [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) panels.pack(p, packed, row_of);
      });
    }

    // sum[r0 + r, :] += grads[:, r0 + r]^T right  for r < count; bias[r0 + r] += sum of grads[:, r0 + r]
    void add_block(const Panels<A>& right, const A* packed, int64_t rows, const A* grads, int64_t r0, int64_t count,
                   A* columns, A* sum, A* bias) {
      for (int64_t r = 0; r < count; ++r) {
        A* column = columns + r * rows;
        for (int64_t k = 0; k < rows; ++k) column[k] = grads[k * kGates * args_.H + r0 + r];
        bias[r0 + r] += sum_of(column, rows);
      }
      for (int64_t p = 0; p < right.count(); ++p)
        right.multiply(p, packed, count, {columns, rows, 1, kSumBlock},
                       [&](int64_t r, int64_t column, int64_t n, const A* sums) {
                         A* to = sum + (r0 + r) * right.N + column;
                         for (int64_t j = 0; j < n; ++j) to[j] += sums[j];
                       });
    }

    const BackwardArgs<S>& args_;
    const int64_t rows_;  // of a chunk
    const Scratch<A> packed_x_, packed_h_, packed_reset_;
    const Scratch<S> zeros_;
    const Scratch<A> reset_;  // [rows, H]: r * h
    const Scratch<A> ih_, hh_, bias_ih_, bias_hh_;
  };

  const BackwardArgs<S>& args_;
  const Units<A> units_;
  const int64_t steps_;                         // of a chunk
  const Panels<A> hidden_, candidate_, input_;  // weight_hh, reset before: its last gate, weight_ih
  const Scratch<A> hidden_weight_, candidate_weight_, input_weight_;
  const Scratch<A> grads_x_, grads_h_;  // [steps, B, G*H]: d loss / d gates_x, d gates_h where it differs
  const Scratch<A> grad_states_;        // d loss / d h, d c or d (r * h) between two steps: [B, padded] each
};

// ---- The table's entries ----

template <template <class> class Cell, class S>
void forward(const ForwardArgs<S>& args) {
  using A = accumulate_t<S>;
  Forward<Cell<Vec<A>>, S, A>(args).run();
}

template <template <class> class Cell, class S>
void backward(const BackwardArgs<S>& args) {
  using A = accumulate_t<S>;
  Backward<Cell<Vec<A>>, S, A>(args).run();
}

template <class S>
Loops<S> loops() {
  return {{forward<LstmCell, S>, backward<LstmCell, S>},
          {forward<GruCell, S>, backward<GruCell, S>},
          {forward<GruResetBeforeCell, S>, backward<GruResetBeforeCell, S>}};
}

}  // namespace
}  // namespace fused_rnn
