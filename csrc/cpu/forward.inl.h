// Forward of one layer in one direction. The batch is cut into slices, one a thread, that run all their steps without
// meeting. Included by each instruction set's source file.
#pragma once

#include "layout.inl.h"

namespace fused_rnn {
namespace {

constexpr int64_t kChunkBytes = 256 * 1024;  // projected input of a chunk of steps: stays in the second-level cache

// Up to this many rows (step, batch), weights are not packed; fewer if each use converts them.
constexpr int64_t kUnpackedRows = 16, kUnpackedRowsConverted = 4;

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

template <class Cell, class S, class A>
class Forward {
  using V = Vec<A>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = kHiddenGates<Cell>;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  explicit Forward(const ForwardArgs<S>& args)
      : args_(args),
        units_{args.H},
        input_(args.weight_ih, args.bias_ih, 0, args.I, args.H, is_packed(args)),
        hidden_(args.weight_hh, args.bias_hh, 0, args.H, args.H, is_packed(args)),
        candidate_(args.weight_hh, args.bias_hh, Cell::kResetBefore ? kFirst : 0, Cell::kResetBefore ? args.H : 0,
                   args.H, is_packed(args)) {}

  void run() {
    const auto& a = args_;
    parallel_for(units_.panels(), double(kGates * kLanes * (a.I + a.H)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        input_.pack(p);
        hidden_.pack(p);
        if constexpr (Cell::kResetBefore) candidate_.pack(p);
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
  static bool is_packed(const ForwardArgs<S>& args) {
    return args.T * args.B > (kConverted<S, A> ? kUnpackedRowsConverted : kUnpackedRows);
  }

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
    store(a.output + (t * a.B + b) * a.H + p * kLanes, next.h, units_.count(p));
    store(h_next + at, rounded<S>(next.h));
    if constexpr (Cell::kSavedCell >= 0) store(c + at, next.c);
    store_saved(t, b, p, saved);
  }

  // Row m takes no part in step t: its state stays, its output is zero, and so is what is saved.
  void skip(const Slice& s, int64_t t, int64_t p, int64_t m, const A* h, A* h_next) const {
    const auto& a = args_;
    const int64_t b = s.b0 + m, at = m * units_.padded() + p * kLanes;
    store(h_next + at, load<A>(h + at));
    store(a.output + (t * a.B + b) * a.H + p * kLanes, V(A(0)), units_.count(p));
    typename Cell::Saved nothing;
    for (V& field : nothing) field = V(A(0));
    store_saved(t, b, p, nothing);
  }

  FUSED_RNN_INLINE void store_saved(int64_t t, int64_t b, int64_t p, const typename Cell::Saved& saved) const {
    const auto& a = args_;
    if (!a.saved) return;
    for (int k = 0; k < Cell::kSaved; ++k)
      store(a.saved + ((t * a.B + b) * Cell::kSaved + k) * a.H + p * kLanes, saved[k], units_.count(p));
  }

  const ForwardArgs<S>& args_;
  const Units<A> units_;
  GatePanels<kGates, S, A> input_;
  GatePanels<kFirst, S, A> hidden_;
  GatePanels<1, S, A> candidate_;  // reset before: weight_hn, which multiplies r * h
};

}  // namespace
}  // namespace fused_rnn
