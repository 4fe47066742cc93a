// Arguments of the loops: sizes and pointers, nothing of torch. All arrays are contiguous, but for the rows of output
// and grad_output; S is the storage type and A the type that is computed in. Of a packed sequence, arrays of [T, B,
// ...] are [N, ...]: only the active rows of each step, one step after the other.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace fused_rnn {

constexpr int kMostTogether = 8;  // layers, each in one direction, that a device runs at once

// Steps, batch, input size, hidden size.
struct LayerSizes {
  int64_t T, B, I, H;
  int64_t P;     // numbers of h: of the projection, or without one H
  int64_t rows;  // of all steps, each up to its last active row; T * B without lengths
};

// Whether x and h of a step are multiplied in one tile, on the CPU.
enum class Joining { kByRows, kAlways, kNever };

// What weights in panels are made of.
enum class Quantized { kNone, kBFloat16, kInt8 };

// A weight [G*H, K] in the gate panels of the instruction set (cpu/layout.inl.h).
struct QuantizedWeight {
  const void* panels;
  const float* scales;  // of int8: of each row, [G*H]
};

// Arguments of a loop, for one layer in one direction; T, B and H are at least 1. G: gates of the cell.
template <class S>
struct LayerArgs : LayerSizes {
  int64_t output_row;      // from a row of output and grad_output to the next: P, or with two directions 2 P
  bool reverse;            // time runs from T-1 down to 0
  const int64_t* lengths;  // [B] or null: row b is active at step t iff t < lengths[b]; 0 <= lengths[b] <= T
  const int64_t* active;   // [T] or null: one past the last row that is active at step t; on the CPU with lengths
  const int64_t* offsets;  // [T] of a packed sequence, or null: its first row of each step
  const uint8_t* resets;   // [T, B] or null: a new sequence begins in row b at step t where it is not 0
  const S* x;              // [T, B, I]
  const S* weight_ih;      // [G*H, I]
  const S* weight_hh;      // [G*H, P]
  const S* weight_hr;      // [P, H] or null: h is projected, weight_hr m with the cell's own h as m; LSTM only
  const S* hx;             // [B, P] or null for zeros
  const S* cx;             // [B, H] or null for zeros, LSTM only
  Joining joining;
  // In place of weight_ih and weight_hh in loops of quantised weights, which are on the CPU.
  QuantizedWeight quantized_ih, quantized_hh;

  FUSED_RNN_INLINE int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  // The first active step of row b in the order of processing, and the step before step t in that order.
  FUSED_RNN_INLINE int64_t first_step(int64_t b) const { return reverse ? length(b) - 1 : 0; }
  FUSED_RNN_INLINE int64_t step_before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  // Whether the state before step t of row b is zero: in either direction nothing crosses the beginning of a sequence.
  FUSED_RNN_INLINE bool starts_anew(int64_t t, int64_t b) const {
    const int64_t begin = reverse ? t + 1 : t;
    return resets && begin < length(b) && resets[begin * B + b];
  }
  // One past the last row from `begin` to `end` that is active at step t. All rows before it are, too, if they are
  // sorted by length, longest first.
  FUSED_RNN_INLINE int64_t active_rows(int64_t t, int64_t begin, int64_t end) const {
    const int64_t last = active && active[t] < end ? active[t] : end;
    return last > begin ? last : begin;
  }
  // Whether weight_hh multiplies anything: in a single step from zeros it does not.
  FUSED_RNN_INLINE bool multiplies_h() const { return T > 1 || hx; }
  // Row b at step t among the rows of all steps.
  FUSED_RNN_INLINE int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * B) + b; }
};

// Saved: element type of the values that the forward saves for the backward.
template <class S, class Saved = accumulate_t<S>>
struct ForwardArgs : LayerArgs<S> {
  const S* bias_ih;  // [G*H] or null
  const S* bias_hh;  // [G*H] or null
  S* output;         // [T, B, P], zero where a row is not active
  S* hy;             // [B, P]
  S* cy;             // [B, H], LSTM only
  Saved* saved;      // [T, B, kSaved, H], or null when no backward will come
};

template <class S, class Saved = accumulate_t<S>>
struct BackwardArgs : LayerArgs<S> {
  const S* grad_output;  // [T, B, P] or null for zeros
  const S* grad_hy;      // [B, P] or null for zeros
  const S* grad_cy;      // [B, H] or null for zeros
  const S* output;       // [T, B, P], from the forward
  const Saved* saved;    // [T, B, kSaved, H], from the forward
  S* grad_x;             // [T, B, I] or null if not needed
  bool adds_grad_x;      // add to grad_x, which holds the other direction's gradient
  S* grad_weight_ih;     // [G*H, I]; null with grad_weight_hh, or if I = 0
  S* grad_weight_hh;     // [G*H, P] or null if no weight's gradient is needed
  S* grad_weight_hr;     // [P, H]; null with grad_weight_hh, or without a projection
  S* grad_bias_ih;       // [G*H], or null if there is none or it is not needed
  S* grad_bias_hh;       // [G*H], or null if there is none or it is not needed
  S* grad_hx;            // [B, P] or null if not needed
  S* grad_cx;            // [B, H] or null if not needed, LSTM only
};

}  // namespace fused_rnn
