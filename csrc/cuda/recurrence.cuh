// The persistent kernels: weight_hh stays on chip while a group of blocks takes rows of the batch through all steps. A
// warp's product gives all gates of its sums, so that a thread has all that the cell needs for its elements; their
// state stays in its registers. How warps hand on what the next product needs is the Exchange (exchange.cuh).
//
// The elements of a thread go through a step side by side, without a branch: otherwise each would wait for its own
// chain of exp and tanh. An element that is not active computes too, and nothing of it is kept. One that does not exist
// starts from zeros and stays finite, so that the weights past H, which are zero, keep it out of all sums.
#pragma once

#include <type_traits>

#include "cluster.cuh"
#include "grid.cuh"

namespace fused_rnn {

// A pass of a cell: how it divides what it exchanges, and how often warps meet at a step.
template <class Cell, bool kBackward>
struct PassOf {
  static constexpr int kSlots = Layout::slots(kBackward, Cell::kGates, Cell::kResetBefore);
  static constexpr int kSums = Layout::sums(kBackward, Cell::kGates, Cell::kResetBefore);
  static constexpr int kMeetings = 1 + Cell::kResetBefore;
};

template <Tier kTier, Math kMath, class Pass, int kRoom>
using ExchangeOf = std::conditional_t<
    kTier == Tier::kBlock, WithinBlock<kMath, Pass, kRoom>,
    std::conditional_t<kTier == Tier::kCluster, ThroughCluster<kMath, Pass, kRoom>, ThroughMemory<kMath, Pass, kRoom>>>;

// body() in the warps that apply the cell.
template <bool kOneBlock, class Body>
FUSED_RNN_DEVICE void where_cell_is_applied(const Place<kOneBlock>& place, const Body& body) {
  if (kOneBlock || place.applies_cell) body();
}

template <Math kMath, int kInRegisters>
constexpr int kMostThreads = 32 * most_warps(kMath, kInRegisters > 0);

// The weights of a warp, in the memory that starts at `memory`, on their way through that of the exchange, which
// follows.
template <Math kMath, int kGates, int kInRegisters, bool kInShared, class Factors, class Place>
FUSED_RNN_DEVICE auto load_weights(const Layout& layout, unsigned char* memory, const Place& place,
                                   const Factors& factors) {
  using Element = typename Tile<kMath>::Element;
  Element* const shared = reinterpret_cast<Element*>(memory) + place.warp * layout.in_shared() * kGates * kLeftNumbers;
  Element* const loading =
      reinterpret_cast<Element*>(memory + layout.weight_bytes()) + place.warp * kInRegisters * kLeftNumbers;
  const WarpWeights<kMath, kGates, kInRegisters, kInShared> weights(
      shared, loading, place.lane, factors, place.tile * kUnitTile, place.first_tile, place.tiles);
  block_barrier("loaded");  // weights and biases; the exchange's memory is free
  return weights;
}

template <class Cell, class S, Math kMath, int kInRegisters, bool kInShared, Tier kTier>
FUSED_RNN_DEVICE void run_forward(const Recurrence<ForwardSteps<S>>& recurrence) {
  using Number = NumberOf<Cell>;
  using Pass = PassOf<Cell, false>;
  using Exchange = ExchangeOf<kTier, kMath, Pass, kInShared ? 0 : kInRegisters>;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  constexpr bool kOneBlock = Exchange::kOneBlock;
  constexpr int kElements = Place<kOneBlock>::kElements;
  FUSED_RNN_SHARED_MEMORY(memory);
  const ForwardSteps<S> a = recurrence.part(blockIdx.y);
  const Layout& layout = recurrence.layout;
  const int H = a.H, to_next = a.to_next(), hop = to_next * a.B * H;
  const Place<kOneBlock> place(recurrence);
  const Lengths lengths(recurrence, place);
  unsigned char* const exchange_memory = memory + layout.weight_bytes();
  Exchange exchange(layout, recurrence.mailbox, exchange_memory, place);
  float* const biases =  // [2, kGates, units of the block]: of x, of h
      reinterpret_cast<float*>(exchange_memory + layout.exchange_bytes(false, Cell::kResetBefore));
  const int units = layout.unit_tiles * kUnitTile;
  const int first_unit = (place.tile - place.warp / layout.slices) * kUnitTile;
  for (int i = threadIdx.x; i < 2 * kGates * units; i += blockDim.x) {
    const int row = i / units, unit = first_unit + i % units;
    const S* const from = row < kGates ? a.bias_ih : a.bias_hh;
    biases[i] = unit < H ? load(from, row % kGates * H + unit) : 0.0f;
  }
  const auto weights = load_weights<kMath, kGates, kInRegisters, kInShared>(layout, memory, place,
                                                                            LeftFactors<S, false>{a.weight_hh, H});
  exchange.start();
  const auto bias = [&](bool of_h, int gate, int e) {
    return biases[(of_h * kGates + gate) * units + place.unit - first_unit + place.unit_of(e)];
  };

  const int first = a.time(a.begin);
  Cursor<const float, kGates> gates_x(a.gates_x, a, place, a.place(first));
  Cursor<S, 1> output(a.output, a, place, first);
  Cursor<S, Cell::kSaved> saved(a.saved, a, place, first);
  const auto store = [&](int e, S h, const typename Cell::Saved& numbers) {
    store_if(place.exists[e], output.of(e, H), h);
    store_saved<Cell>(place.exists[e] && recurrence.parts[0].saved, saved.of(e, H), H, numbers);
  };
  const auto skip = [&](int steps) {  // no row is active
    const typename Cell::Saved nothing = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      place.for_elements([&](int e) { store(e, from_float<S>(0.0f), nothing); });
      output.advance(hop), saved.advance(hop);
    }
  };
  skip(lengths.begin);
  gates_x.advance(int64_t(lengths.begin) * hop);

  typename Cell::State state[kElements] = {};
  uint32_t x[kElements][kGates] = {};
  const auto load_x = [&](bool is_any) {
    place.for_elements([&](int e) { load_gates_x<Cell>(place.exists[e] && is_any, gates_x.of(e, H), H, x[e]); });
  };
  const auto put_h = [&](int buffer) {
    float h[1][kElements];
    place.for_elements([&](int e) { h[0][e] = state[e].h.v; });
    exchange.put(buffer, 0, h);
  };
  place.for_elements([&](int e) {
    if (place.exists[e]) state[e] = initial_state<Cell>(a, place.state(e, H));
  });
  where_cell_is_applied(place, [&] {
    put_h(0);
    exchange.announce("forward.initial");
  });
  load_x(lengths.begin < lengths.end);

  int now = 0;  // the buffer that holds h
  int t = a.time(a.begin + lengths.begin);
  Anew anew;
  if (a.resets) anew.load(a, place, lengths, t, lengths.begin < lengths.end);
#pragma unroll 1
  for (int left = lengths.end - lengths.begin; left > 0; --left, now = 1 - now, t += to_next) {
    float products[kGates][kElements];
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate)
      place.for_elements([&](int e) { products[gate][e] = bias(true, gate, e); });
    exchange.template receive<0, 1>(now, "forward.h");
    exchange.template total<0, kFirst>(now, products, "forward.sums", [&](int r, auto& sums) {
      multiply_tiles<kMath, 0, kFirst, true>(sums, weights, place.lane, exchange.right(now, 0, r), 0);
    });
    if (a.resets)
      where_cell_is_applied(place, [&] {
        place.for_elements([&](int e) {
          if (!anew(e)) return;
          state[e] = {};
#pragma unroll
          for (int gate = 0; gate < kFirst; ++gate) products[gate][e] = bias(true, gate, e);
        });
        anew.load(a, place, lengths, t + to_next, left > 1);
      });
    if constexpr (Cell::kResetBefore) {
      where_cell_is_applied(place, [&] {
        float reset_h[1][kElements];
        place.for_elements([&](int e) {
          const Number r_x = from_bits<float>(x[e][0]) + bias(false, 0, e);
          reset_h[0][e] = Cell::reset(r_x, products[0][e], state[e]).v;
        });
        exchange.put(now, 1, reset_h);
        exchange.announce("forward.reset");
      });
      exchange.template receive<1, 2>(now, "forward.reset_h");
      exchange.template total<kFirst, kGates>(now, products, "forward.candidate", [&](int r, auto& sums) {
        multiply_tiles<kMath, kFirst, kGates, true>(sums, weights, place.lane, exchange.right(now, 1, r), 0);
      });
    }
    where_cell_is_applied(place, [&] {
      S h[kElements];
      typename Cell::Saved numbers[kElements];
      place.for_elements([&](int e) {
        Number of_x[kGates], of_h[kGates];
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          of_x[gate] = from_bits<float>(x[e][gate]) + bias(false, gate, e);
          of_h[gate] = products[gate][e];
        }
        const auto after = Cell::forward(of_x, of_h, state[e], numbers[e]);
        const bool active = lengths.is_active(e, t);
        const S rounded = from_float<S>(after.h.v);
        h[e] = active ? rounded : from_float<S>(0.0f);
        state[e].h = active ? to_float(rounded) : state[e].h.v;
        if constexpr (kHasCellState<Cell>) state[e].c = active ? after.c.v : state[e].c.v;
#pragma unroll
        for (int k = 0; k < Cell::kSaved; ++k) numbers[e][k] = active ? numbers[e][k].v : 0.0f;
      });
      put_h(1 - now);
      exchange.announce("forward.step");
      place.for_elements([&](int e) { store(e, h[e], numbers[e]); });
      output.advance(hop), saved.advance(hop);
      keep_order();
      gates_x.advance(left > 1 ? hop : 0);
      load_x(true);
    });
  }
  exchange.finish(now);
  skip(a.count - lengths.end);
  place.for_elements([&](int e) {
    if (place.exists[e]) store_state<Cell>(a, place.state(e, H), state[e]);
  });
}

// totals[kTotal] = the products of gates [kFirst, kLast), which a buffer holds.
template <Math kMath, int kFirst, int kLast, int kTotal, class Exchange, class Weights, int kSums, int kElements>
FUSED_RNN_DEVICE void add_products(Exchange& exchange, const Weights& weights, int lane, int buffer,
                                   float (&totals)[kSums][kElements], Site site) {
  exchange.template total<kTotal, kTotal + 1>(buffer, totals, site, [&](int r, auto& sums) {
    float products[kLast][4] = {};
    multiply_tiles<kMath, kFirst, kLast, false>(products, weights, lane, exchange.right(buffer, kFirst, r),
                                                exchange.slot_stride());
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = products[kFirst][i];
#pragma unroll
      for (int gate = kFirst + 1; gate < kLast; ++gate) sum += products[gate][i];
      sums[kTotal][i] = sum;
    }
  });
}

template <class Cell, class S, Math kMath, int kInRegisters, bool kInShared, Tier kTier>
FUSED_RNN_DEVICE void run_backward(const Recurrence<BackwardSteps<S>>& recurrence) {
  using Number = NumberOf<Cell>;
  using Pass = PassOf<Cell, true>;
  using Exchange = ExchangeOf<kTier, kMath, Pass, kInShared ? 0 : kInRegisters>;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  constexpr int kReset = Cell::kResetBefore;  // the total that is the gradient of r * h
  constexpr bool kOneBlock = Exchange::kOneBlock;
  constexpr int kElements = Place<kOneBlock>::kElements;
  FUSED_RNN_SHARED_MEMORY(memory);
  const BackwardSteps<S> a = recurrence.part(blockIdx.y);
  const Layout& layout = recurrence.layout;
  const int H = a.H, to_next = a.to_next(), hop = to_next * a.B * H;
  const Place<kOneBlock> place(recurrence);
  const Lengths lengths(recurrence, place);
  // Transposed: a row is a unit of h, the depth is the units of the gate.
  const auto weights =
      load_weights<kMath, kGates, kInRegisters, kInShared>(layout, memory, place, LeftFactors<S, true>{a.weight_hh, H});
  unsigned char* const exchange_memory = memory + layout.weight_bytes();
  Exchange exchange(layout, recurrence.mailbox, exchange_memory, place);
  exchange.start();

  const int first = a.time(a.begin), first_place = a.place(first);
  Cursor<S, kGates> grads_x(a.grads_x, a, place, first_place), grads_h(a.grads_h, a, place, first_place);
  Cursor<S, 1> h_before(a.h_before, a, place, first_place), reset_h(a.between, a, place, first_place);
  const auto store = [&](int e, const GradsOf<Cell>& grads, S h, float reset_gate) {
    const GradTargets<S> to{grads_x.of(e, H), Cell::kGradsDiffer ? grads_h.of(e, H) : nullptr, h_before.of(e, H),
                            Cell::kResetBefore ? reset_h.of(e, H) : nullptr};
    store_grads<Cell>(place.exists[e], to, H, grads, h, reset_gate);
  };
  const auto advance = [&] {
    grads_x.advance(hop), h_before.advance(hop);
    if constexpr (Cell::kGradsDiffer) grads_h.advance(hop);
    if constexpr (Cell::kResetBefore) reset_h.advance(hop);
  };
  const auto skip = [&](int steps) {  // no row is active
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      place.for_elements([&](int e) { store(e, no_grads<Cell>(), from_float<S>(0.0f), 0.0f); });
      advance();
    }
  };
  skip(lengths.begin);

  // The thread's elements of hx and cx, which rows reach at different steps.
  S* const hx = reinterpret_cast<S*>(exchange_memory + layout.exchange_bytes(true, Cell::kResetBefore)) +
                threadIdx.x * kElements * (1 + kHasCellState<Cell>);
  S* const cx = hx + kElements;
  const int begin = a.begin + lengths.begin, begin_time = a.time(begin < a.T ? begin : a.T - 1);
  Cursor<const S, 1> grad_output(a.grad_output, a, place, begin_time), output(a.output, a, place, begin_time);
  Cursor<const S, Cell::kSaved> saved(a.saved, a, place, begin_time);
  typename Cell::State grad[kElements] = {};
  BackwardInputs<Cell> in[kElements] = {};
  const auto load_in = [&](int time, bool is_any) {
    // The state before is the output and saved c of the next step of this pass, or the initial one.
    auto output_before = output;
    auto saved_before = saved;
    const int to_before = a.has_time(time + to_next) ? hop : 0;
    output_before.advance(to_before), saved_before.advance(to_before);
    place.for_elements([&](int e) {
      const bool exists = place.exists[e] && is_any;
      load_if(exists && a.grad_output, grad_output.of(e, H), in[e].grad_output);
      load_if(exists, output_before.of(e, H), in[e].h_before);
      load_saved<Cell>(exists, saved.of(e, H), saved_before.of(e, H), H, in[e]);
    });
  };
  place.for_elements([&](int e) {
    const int at = place.state(e, H), row = place.row + place.row_of(e);
    if (place.exists[e]) grad[e] = initial_grad<Cell>(a, at);
    const bool enters = place.exists[e] && !a.starts_anew(a.first_time(row), row);
    hx[e] = enters ? a.hx[at] : from_float<S>(0.0f);
    if constexpr (kHasCellState<Cell>) cx[e] = enters ? a.cx[at] : from_float<S>(0.0f);
  });
  load_in(begin_time, lengths.begin < lengths.end);

  int now = 0;  // the buffer of this step
  int t = begin_time;
  Anew anew, next_anew;  // of the step before in this pass, and of this one
  if (a.resets) next_anew.load(a, place, lengths, t, lengths.begin < lengths.end);
  const auto drop_grads = [&] {
    place.for_elements([&](int e) {
      grad[e].h = anew(e) ? 0.0f : grad[e].h.v;
      if constexpr (kHasCellState<Cell>) grad[e].c = anew(e) ? 0.0f : grad[e].c.v;
    });
  };
#pragma unroll 1
  for (int left = lengths.end - lengths.begin; left > 0; --left, now = 1 - now, t += to_next) {
    float totals[Pass::kSums][kElements] = {};
    typename Cell::Saved numbers[kElements];
    typename Cell::State grad_now[kElements];
    if (a.resets)
      where_cell_is_applied(place, [&] {
        drop_grads();
        anew = next_anew.arrived();
        place.for_elements([&](int e) {
          in[e].h_before = anew(e) ? 0 : in[e].h_before;
          if constexpr (kHasCellState<Cell>) in[e].c_before = anew(e) ? 0 : in[e].c_before;
        });
        next_anew.load(a, place, lengths, t + to_next, left > 1);
      });
    where_cell_is_applied(place, [&] {
      place.for_elements([&](int e) {
        saved_of<Cell, S>(in[e], numbers[e]);
        grad_now[e] = grad[e];
        grad_now[e].h = grad[e].h + to_float(from_bits<S>(in[e].grad_output));
      });
    });
    if constexpr (Cell::kResetBefore) {
      where_cell_is_applied(place, [&] {
        float candidate[1][kElements];
        place.for_elements([&](int e) {
          const Number one = Cell::candidate_grad(grad_now[e], numbers[e]);
          candidate[0][e] = lengths.is_active(e, t) ? one.v : 0.0f;
        });
        exchange.put(now, kFirst, candidate);
        exchange.announce("backward.candidate");
      });
      exchange.template receive<kFirst, kGates>(now, "backward.candidate_grad");
      add_products<kMath, kFirst, kGates, kReset>(exchange, weights, place.lane, now, totals,
                                                  "backward.candidate_sums");
    }
    where_cell_is_applied(place, [&] {
      GradsOf<Cell> grads[kElements];
      S h[kElements];
      place.for_elements([&](int e) {
        const bool active = lengths.is_active(e, t), is_first = is_first_step(a, t, lengths.of(e));
        const float h_before = to_float(from_bits<S>(in[e].h_before)), h_initial = to_float(hx[e]);
        typename Cell::State before;
        before.h = is_first ? h_initial : h_before;
        if constexpr (kHasCellState<Cell>) {
          const float c_initial = to_float(cx[e]);
          before.c = is_first ? c_initial : to_float(from_bits<S>(in[e].c_before));
        }
        grads[e] = step_backward<Cell>(grad_now[e], before, numbers[e], totals[kReset][e]);
        h[e] = active ? from_float<S>(before.h.v) : from_float<S>(0.0f);
        grad[e].h = active ? grads[e].prev.h.v : grad[e].h.v;
        if constexpr (kHasCellState<Cell>) grad[e].c = active ? grads[e].prev.c.v : grad[e].c.v;
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          grads[e].x[gate] = active ? grads[e].x[gate].v : 0.0f;
          grads[e].h[gate] = active ? grads[e].h[gate].v : 0.0f;
        }
      });
      float of_h[kFirst][kElements];
#pragma unroll
      for (int gate = 0; gate < kFirst; ++gate) place.for_elements([&](int e) { of_h[gate][e] = grads[e].h[gate].v; });
      exchange.put(now, 0, of_h);
      exchange.announce("backward.step");
      place.for_elements([&](int e) { store(e, grads[e], h[e], numbers[e][0].v); });
      advance();
      keep_order();
      const int more = left > 1;
      grad_output.advance(more * hop), output.advance(more * hop), saved.advance(more * hop);
      load_in(t + more * to_next, true);
    });
    exchange.template receive<0, kFirst>(now, "backward.grads");
    add_products<kMath, 0, kFirst, 0>(exchange, weights, place.lane, now, totals, "backward.sums");
    where_cell_is_applied(place, [&] {
      place.for_elements(
          [&](int e) { grad[e].h = lengths.is_active(e, t) ? (grad[e].h + totals[0][e]).v : grad[e].h.v; });
    });
  }
  skip(a.count - lengths.end);
  if (a.resets) drop_grads();
  place.for_elements([&](int e) {
    if (place.exists[e]) store_grad<Cell>(a, place.state(e, H), grad[e]);
  });
}

// ---- Kernels ----

// A kernel is compiled for every architecture, and has no code where its exchange cannot run.
template <class Cell, class S, Math kMath, int kInRegisters, bool kInShared, Tier kTier>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kInRegisters>, 1)
    recurrent_forward(const __grid_constant__ Recurrence<ForwardSteps<S>> recurrence) {
  if constexpr (kIsAtLeast<oldest_capability(kTier)>)
    run_forward<Cell, S, kMath, kInRegisters, kInShared, kTier>(recurrence);
}

template <class Cell, class S, Math kMath, int kInRegisters, bool kInShared, Tier kTier>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kInRegisters>, 1)
    recurrent_backward(const __grid_constant__ Recurrence<BackwardSteps<S>> recurrence) {
  if constexpr (kIsAtLeast<oldest_capability(kTier)>)
    run_backward<Cell, S, kMath, kInRegisters, kInShared, kTier>(recurrence);
}

}  // namespace fused_rnn
