// Backward of one layer in one direction. Included by each instruction set's source file.
//
// Chunks of steps, last first. In each, the slices run their steps backward and leave the gradients of the gates in
// grads_x and grads_h; then the sums over the chunk's rows (grad_weight, grad_bias) and its grad_x are products of
// matrices that are still in cache. Every element is summed in one fixed order.
#pragma once

#include "layout.inl.h"

namespace fused_rnn {
namespace {

constexpr int64_t kChunkRows = 256;  // rows (step, batch) whose gradients are multiplied while still in cache
constexpr int64_t kSumBlock = 32;    // products in a part of a sum: PyTorch's sums are as exact

// In as many partial sums as a vector has lanes.
template <class A>
FUSED_RNN_INLINE A sum_of(const A* from, int64_t n) {
  constexpr int64_t kLanes = Vec<A>::kLanes;
  Vec<A> sums(A(0));
  for (int64_t i = 0; i < n; i += kLanes) sums += load<A>(from + i, int(least(kLanes, n - i)));
  return sum_of_lanes(sums);
}

template <class Cell, class S, class A>
class Backward {
  using V = Vec<A>;
  using Grads = StepGrads<V, typename Cell::State, Cell::kGates>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = kHiddenGates<Cell>;
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
        candidate_.multiply(p, candidate_weight_, active - b0,
                            {grads_x_ + (row0 + b0) * width + kFirst * a.H, width, 1, kSumBlock},
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
      hidden_.multiply(p, hidden_weight_, active - b0, {grads_h() + (row0 + b0) * width, width, 1, kSumBlock},
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
        input_.multiply(p, input_weight_, count, {grads_x_ + r0 * width, width, 1, kSumBlock},
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
          converted_ih_(kInPlace ? 0 : size() * args.I),
          converted_hh_(kInPlace ? 0 : size() * args.H),
          bias_ih_(size()),
          bias_hh_(Cell::kGradsDiffer ? size() : 0) {
      for (int64_t i = 0; i < most(args.I, args.H); ++i) zeros_[i] = S(A(0));
      if constexpr (kInPlace) {
        ih_ = args.grad_weight_ih;
        hh_ = args.grad_weight_hh;
      } else {
        ih_ = converted_ih_;
        hh_ = converted_hh_;
      }
      for (int64_t i = 0; i < size() * args.I; ++i) ih_[i] = A(0);
      for (int64_t i = 0; i < size() * args.H; ++i) hh_[i] = A(0);
      for (int64_t i = 0; i < size(); ++i) bias_ih_[i] = A(0);
      if constexpr (Cell::kGradsDiffer)
        for (int64_t i = 0; i < size(); ++i) bias_hh_[i] = A(0);
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
          gather(grads_x, rows, r0, count, columns, bias_ih_);
          add_block(x, packed_x_, columns, r0, count, ih_);
          if constexpr (Cell::kGradsDiffer) gather(grads_h, rows, r0, count, columns, bias_hh_);
          add_block(h, i < split ? packed_h_ : packed_reset_, columns, r0, count, hh_);
        }
      });
    }

    void finish() const {
      if (rows_ == 0) return;
      const auto write = [](S* to, const A* from, int64_t n) {
        for (int64_t i = 0; to && i < n; ++i) to[i] = S(from[i]);
      };
      if constexpr (!kInPlace) {
        write(args_.grad_weight_ih, ih_, size() * args_.I);
        write(args_.grad_weight_hh, hh_, size() * args_.H);
      }
      write(args_.grad_bias_ih, bias_ih_, size());
      write(args_.grad_bias_hh, Cell::kGradsDiffer ? bias_hh_ : bias_ih_, size());
    }

   private:
    static constexpr bool kInPlace = std::is_same<S, A>::value;  // the sums grow where they are returned

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

    // columns[r, :] = grads[:, r0 + r] and bias[r0 + r] += its sum, for r < count
    void gather(const A* grads, int64_t rows, int64_t r0, int64_t count, A* columns, A* bias) {
      for (int64_t r = 0; r < count; ++r) {
        A* column = columns + r * rows;
        for (int64_t k = 0; k < rows; ++k) column[k] = grads[k * kGates * args_.H + r0 + r];
        bias[r0 + r] += sum_of(column, rows);
      }
    }

    // sum[r0 + r, :] += columns[r, :] right, for r < count
    void add_block(const Panels<A>& right, const A* packed, const A* columns, int64_t r0, int64_t count, A* sum) {
      for (int64_t p = 0; p < right.count(); ++p)
        right.multiply(p, packed, count, {columns, right.K, 1, kSumBlock},
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
    const Scratch<A> converted_ih_, converted_hh_;
    A *ih_, *hh_;                         // [G*H, I] and [G*H, H]
    const Scratch<A> bias_ih_, bias_hh_;  // [G*H]; bias_hh_ where it differs
  };

  const BackwardArgs<S>& args_;
  const Units<A> units_;
  const int64_t steps_;                         // of a chunk
  const Panels<A> hidden_, candidate_, input_;  // weight_hh, reset before: its last gate, weight_ih
  const Scratch<A> hidden_weight_, candidate_weight_, input_weight_;
  const Scratch<A> grads_x_, grads_h_;  // [steps, B, G*H]: d loss / d gates_x, d gates_h where it differs
  const Scratch<A> grad_states_;        // d loss / d h, d c or d (r * h) between two steps: [B, padded] each
};

}  // namespace
}  // namespace fused_rnn
