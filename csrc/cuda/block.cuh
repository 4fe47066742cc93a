// The block tier: one block takes 8 rows of the batch through all steps, with weight_hh on chip and no other block to
// wait for. Warp w owns units [16 w, 16 w + 16) of all gates, so that a thread's sums are all gates of its four
// elements: units lane/4 and lane/4 + 8, rows 2 (lane%4) and the next one. Their state stays in its registers. What the
// next product needs of all warps goes through shared memory, in two buffers, so that a step takes one barrier; with
// the reset before the matmul two.
#pragma once

#include "barriers.cuh"
#include "element.cuh"
#include "tile.cuh"

namespace fused_rnn {

constexpr int kElements = 4;  // of a thread

template <Math kMath, bool kResident>
constexpr int kMostThreads = 32 * most_warps(kMath, kResident);

// The place of a thread and its elements: units `unit` and 8 further, rows `row` and the next one.
template <class S>
struct BlockPlace {
  int warp, lane, unit, column, row;
  bool exists[kElements];

  FUSED_RNN_DEVICE explicit BlockPlace(const Steps<S>& a)
      : warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        unit(warp * kUnitTile + lane / 4),
        column(2 * (lane % 4)),
        row(blockIdx.x * kBatchTile + column) {
    for (int e = 0; e < kElements; ++e) exists[e] = unit + unit_of(e) < a.H && row + row_of(e) < a.B;
  }
  FUSED_RNN_DEVICE static int unit_of(int e) { return e / 2 * 8; }
  FUSED_RNN_DEVICE static int row_of(int e) { return e % 2; }
  FUSED_RNN_DEVICE int state(int e, int H) const { return (row + row_of(e)) * H + unit + unit_of(e); }
};

// Where the thread's elements are in an array [steps, B, kWidth, H], from step to step. An address, since an array may
// be null.
template <class Number, int kWidth, class S>
class Cursor {
 public:
  FUSED_RNN_DEVICE Cursor(Number* array, const Steps<S>& a, const BlockPlace<S>& place, int step)
      : address_(
            reinterpret_cast<uintptr_t>(array ? of_element<kWidth>(array, a, step, place.row, place.unit) : array)) {}
  FUSED_RNN_DEVICE Number* of(int e, int H) const {
    Number* const row = rows_on(reinterpret_cast<Number*>(address_), kWidth * BlockPlace<S>::row_of(e), H);
    return reinterpret_cast<Number*>(reinterpret_cast<uintptr_t>(row) + BlockPlace<S>::unit_of(e) * sizeof(Number));
  }
  FUSED_RNN_DEVICE void advance(int64_t numbers) { address_ += numbers * int64_t(kWidth * sizeof(Number)); }

 private:
  uintptr_t address_;
};

// The rows of a block: how many steps each of the thread's takes part in, 0 past the end of the batch, and the steps
// [begin, end) of the chunk in which any row of the block does.
template <class S>
struct BlockLengths {
  int of_row[2], begin, end;

  FUSED_RNN_DEVICE BlockLengths(const Steps<S>& a, const BlockPlace<S>& place) {
    const auto length = [&](int row) { return row < a.B ? a.length(row) : 0; };
    for (int i = 0; i < 2; ++i) of_row[i] = length(place.row + i);
    int longest = 0;
    for (int column = 0; column < kBatchTile; ++column) {
      const int one = length(blockIdx.x * kBatchTile + column);
      longest = one > longest ? one : longest;
    }
    const int last = a.down ? a.count : longest - a.begin, first = a.down ? a.T - longest - a.begin : 0;
    begin = first < 0 ? 0 : first < a.count ? first : a.count;
    end = last < begin ? begin : last < a.count ? last : a.count;
  }
  FUSED_RNN_DEVICE int of(int e) const { return of_row[BlockPlace<S>::row_of(e)]; }
  FUSED_RNN_DEVICE bool is_active(int e, int t) const { return t < of(e); }
};

// body(e) for each element of a thread.
template <class Body>
FUSED_RNN_DEVICE void for_own_elements(const Body& body) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) body(e);
}

// The elements of a thread go through a step side by side, without a branch: otherwise each would wait for its own
// chain of exp and tanh. An element that is not active computes too, and nothing of it is kept. One that does not exist
// starts from zeros and stays finite, so that the weights past H, which are zero, keep it out of all sums.
template <class Cell, class S, Math kMath, bool kResident>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kResident>, 1)
    block_forward(const __grid_constant__ ForwardSteps<S> a) {
  using T = Tile<kMath>;
  using Element = typename T::Element;
  using Number = NumberOf<Cell>;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  FUSED_RNN_SHARED_MEMORY(memory);
  const int H = a.H, hop = a.down ? -a.B * H : a.B * H;
  const BlockLayout layout{H, kGates, int(sizeof(Element)), kResident};
  const BlockPlace<S> place(a);
  const BlockLengths<S> lengths(a, place);
  const int lane = place.lane, stride = layout.factor_stride(), padded = layout.padded();
  const WarpWeights<kMath, kGates, kResident> weights(layout, memory, place.warp, lane,
                                                      LeftFactors<S, false>{a.weight_hh, H});
  float* const biases = reinterpret_cast<float*>(memory + layout.weight_bytes());  // [2, kGates, padded]: of x, of h
  for (int i = threadIdx.x; i < 2 * kGates * padded; i += blockDim.x) {
    const int row = i / padded, unit = i % padded;
    const S* const from = row < kGates ? a.bias_ih : a.bias_hh;
    biases[i] = unit < H ? load(from, row % kGates * H + unit) : 0.0f;
  }
  const auto bias = [&](bool of_h, int gate, int e) {
    return biases[(of_h * kGates + gate) * padded + place.unit + place.unit_of(e)];
  };
  Element* const factors = reinterpret_cast<Element*>(memory + layout.weight_bytes() + layout.bias_bytes());
  Element* const own_factor = factors + place.column * stride + place.unit;
  const auto put = [&](int factor, int e, Number value) {  // factors: h of two steps, r * h
    own_factor[(factor * kBatchTile + place.row_of(e)) * stride + place.unit_of(e)] = T::element(value.v);
  };

  const int first = a.time(a.begin);
  Cursor<const float, kGates, S> gates_x(a.gates_x, a, place, a.place(first));
  Cursor<S, 1, S> output(a.output, a, place, first);
  Cursor<float, Cell::kSaved, S> saved(a.saved, a, place, first);
  const auto store = [&](int e, S h, const typename Cell::Saved& numbers) {
    store_if(place.exists[e], output.of(e, H), h);
    store_saved<Cell>(place.exists[e] && a.saved, saved.of(e, H), H, numbers);
  };
  const auto skip = [&](int steps) {  // no row is active
    const typename Cell::Saved nothing = {};
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      for_own_elements([&](int e) { store(e, from_float<S>(0.0f), nothing); });
      output.advance(hop), saved.advance(hop);
    }
  };
  skip(lengths.begin);
  gates_x.advance(int64_t(lengths.begin) * hop);

  typename Cell::State state[kElements] = {};
  uint32_t x[kElements][kGates] = {};
  const auto load_x = [&](bool is_any) {
    for_own_elements([&](int e) { load_gates_x<Cell>(place.exists[e] && is_any, gates_x.of(e, H), H, x[e]); });
  };
  for_own_elements([&](int e) {
    if (place.exists[e]) state[e] = initial_state<Cell>(a, place.state(e, H));
    put(0, e, state[e].h);
  });
  load_x(lengths.begin < lengths.end);
  block_barrier("forward.initial");

  const int factor = kBatchTile * stride;
  int now = 0;  // the factor that holds h, of two
#pragma unroll 1
  for (int i = lengths.begin; i < lengths.end; ++i, now = 1 - now) {
    const int t = a.time(a.begin + i);
    float products[kGates][kElements];
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) for_own_elements([&](int e) { products[gate][e] = bias(true, gate, e); });
    multiply<kMath, 0, kFirst, true>(products, weights, lane, factors + now * factor, stride);
    if constexpr (Cell::kResetBefore) {
      for_own_elements([&](int e) {
        put(2, e, Cell::reset(from_bits<float>(x[e][0]) + bias(false, 0, e), products[0][e], state[e]));
      });
      block_barrier("forward.reset");
      multiply<kMath, kFirst, kGates, true>(products, weights, lane, factors + 2 * factor, stride);
    }
    S h[kElements];
    typename Cell::Saved numbers[kElements];
    for_own_elements([&](int e) {
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
    gates_x.advance(i + 1 < lengths.end ? hop : 0);
    load_x(true);
    for_own_elements([&](int e) {
      put(1 - now, e, state[e].h);
      store(e, h[e], numbers[e]);
    });
    output.advance(hop), saved.advance(hop);
    block_barrier("forward.step");
  }
  skip(a.count - lengths.end);
  for_own_elements([&](int e) {
    if (place.exists[e]) store_state<Cell>(a, place.state(e, H), state[e]);
  });
}

template <class Cell, class S, Math kMath, bool kResident>
FUSED_RNN_KERNEL void __launch_bounds__(kMostThreads<kMath, kResident>, 1)
    block_backward(const __grid_constant__ BackwardSteps<S> a) {
  using T = Tile<kMath>;
  using Element = typename T::Element;
  using Number = NumberOf<Cell>;
  constexpr int kGates = Cell::kGates, kFirst = kHiddenGates<Cell>;
  FUSED_RNN_SHARED_MEMORY(memory);
  const int H = a.H, hop = a.down ? -a.B * H : a.B * H;
  const BlockLayout layout{H, kGates, int(sizeof(Element)), kResident};
  const BlockPlace<S> place(a);
  const BlockLengths<S> lengths(a, place);
  const int lane = place.lane, stride = layout.factor_stride();
  // Transposed: a row is a unit of h, the depth is the units of the gate.
  const WarpWeights<kMath, kGates, kResident> weights(layout, memory, place.warp, lane,
                                                      LeftFactors<S, true>{a.weight_hh, H});
  Element* const factors = reinterpret_cast<Element*>(memory + layout.weight_bytes());  // grads_h of two steps
  Element* const own_factor = factors + place.column * stride + place.unit;
  const auto put = [&](int buffer, int gate, int e, Number value) {
    own_factor[((buffer * kGates + gate) * kBatchTile + place.row_of(e)) * stride + place.unit_of(e)] =
        T::element(value.v);
  };

  const int first = a.time(a.begin), first_place = a.place(first);
  Cursor<S, kGates, S> grads_x(a.grads_x, a, place, first_place), grads_h(a.grads_h, a, place, first_place);
  Cursor<S, 1, S> h_before(a.h_before, a, place, first_place), reset_h(a.reset_h, a, place, first_place);
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
      for_own_elements([&](int e) { store(e, no_grads<Cell>(), from_float<S>(0.0f), 0.0f); });
      advance();
    }
  };
  skip(lengths.begin);

  // The thread's elements of cx, which rows reach at different steps.
  float* const cx = reinterpret_cast<float*>(factors + 2 * kGates * kBatchTile * stride) + threadIdx.x * kElements;
  const int begin = a.begin + lengths.begin, begin_time = a.time(begin < a.T ? begin : a.T - 1);
  Cursor<const S, 1, S> grad_output(a.grad_output, a, place, begin_time), output(a.output, a, place, begin_time);
  Cursor<const float, Cell::kSaved, S> saved(a.saved, a, place, begin_time);
  typename Cell::State grad[kElements] = {};
  BackwardInputs<Cell> in[kElements] = {};
  const auto load_in = [&](int step, bool is_any) {
    // The state before is the output and saved c of the next step of this pass, or hx.
    auto output_before = output;
    auto saved_before = saved;
    output_before.advance(step + 1 < a.T ? hop : 0), saved_before.advance(step + 1 < a.T ? hop : 0);
    for_own_elements([&](int e) {
      const bool exists = place.exists[e] && is_any, is_first = is_first_step(a, a.time(step), lengths.of(e));
      load_if(exists && a.grad_output, grad_output.of(e, H), in[e].grad_output);
      load_if(exists, is_first ? a.hx + place.state(e, H) : output_before.of(e, H), in[e].h_before);
      load_saved<Cell>(exists, saved.of(e, H), saved_before.of(e, H), H, in[e]);
    });
  };
  for_own_elements([&](int e) {
    const int at = place.state(e, H);
    if (place.exists[e]) grad[e] = initial_grad<Cell>(a, at);
    if constexpr (kHasCellState<Cell>) cx[e] = place.exists[e] ? to_float(a.cx[at]) : 0.0f;
  });
  load_in(begin, lengths.begin < lengths.end);

  const int factor = kBatchTile * stride;
  int now = 0;  // the buffer of this step, of two
#pragma unroll 1
  for (int i = lengths.begin; i < lengths.end; ++i, now = 1 - now) {
    const int t = a.time(a.begin + i);
    const Element* const right = factors + now * kGates * factor;
    float products[kGates][kElements] = {};
    typename Cell::Saved numbers[kElements];
    typename Cell::State grad_now[kElements];
    for_own_elements([&](int e) {
      saved_of(in[e], numbers[e]);
      grad_now[e] = grad[e];
      grad_now[e].h = grad[e].h + to_float(from_bits<S>(in[e].grad_output));
    });
    if constexpr (Cell::kResetBefore) {
      for_own_elements([&](int e) {
        const Number candidate = Cell::candidate_grad(grad_now[e], numbers[e]);
        put(now, kFirst, e, lengths.is_active(e, t) ? candidate.v : 0.0f);
      });
      block_barrier("backward.candidate");
      multiply<kMath, kFirst, kGates, false>(products, weights, lane, right, stride);
    }
    GradsOf<Cell> grads[kElements];
    S h[kElements];
    for_own_elements([&](int e) {
      const bool active = lengths.is_active(e, t);
      typename Cell::State before;
      before.h = to_float(from_bits<S>(in[e].h_before));
      if constexpr (kHasCellState<Cell>) {
        before.c = from_bits<float>(in[e].c_before);
        if (is_first_step(a, t, lengths.of(e))) before.c = cx[e];
      }
      grads[e] = step_backward<Cell>(grad_now[e], before, numbers[e], products[kGates - 1][e]);
      h[e] = from_bits<S>(active ? in[e].h_before : 0);
      grad[e].h = active ? grads[e].prev.h.v : grad[e].h.v;
      if constexpr (kHasCellState<Cell>) grad[e].c = active ? grads[e].prev.c.v : grad[e].c.v;
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        grads[e].x[gate] = active ? grads[e].x[gate].v : 0.0f;
        grads[e].h[gate] = active ? grads[e].h[gate].v : 0.0f;
      }
    });
    const int more = i + 1 < lengths.end;
    grad_output.advance(more * hop), output.advance(more * hop), saved.advance(more * hop);
    load_in(a.begin + i + more, true);
    for_own_elements([&](int e) {
#pragma unroll
      for (int gate = 0; gate < kFirst; ++gate) {
        put(now, gate, e, grads[e].h[gate]);
        products[gate][e] = 0.0f;
      }
    });
    for_own_elements([&](int e) { store(e, grads[e], h[e], numbers[e][0].v); });
    advance();
    block_barrier("backward.step");
    multiply<kMath, 0, kFirst, false>(products, weights, lane, right, stride);
    for_own_elements([&](int e) {
      Number sum = products[0][e];
#pragma unroll
      for (int gate = 1; gate < kFirst; ++gate) sum = sum + products[gate][e];
      grad[e].h = lengths.is_active(e, t) ? (grad[e].h + sum).v : grad[e].h.v;
    });
  }
  skip(a.count - lengths.end);
  for_own_elements([&](int e) {
    if (place.exists[e]) store_grad<Cell>(a, place.state(e, H), grad[e]);
  });
}

}  // namespace fused_rnn
