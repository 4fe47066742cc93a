// What the kernels get: some steps of one layer in one direction. Sizes and pointers on the device, nothing of torch.
// All arrays are contiguous; S is the storage type. One step of any array has less than 2^31 numbers, so that places
// within a step are ints. A pass is cut into chunks of steps; what one chunk hands to the next is the state: h or its
// gradient, and c or its gradient in float32. Where h is projected, its arrays have P in place of H.
#pragma once

#include <cstdint>

#include "../recurrence.h"
#include "layout.h"

namespace fused_rnn {

template <class S>
struct Steps {
  int T, B, H;             // of the whole layer; G: gates of the cell
  bool reverse;            // the layer's time runs down
  bool down;               // this pass's time runs down: the forward's with reverse, the backward's without
  const int64_t* lengths;  // [B] or null: row b is active at time t iff t < lengths[b]
  const uint8_t* resets;   // [T, B] or null: a new sequence begins in row b at time t where it is not 0
  int begin, count;        // steps [begin, begin + count) of the pass, in its own order
  const S* weight_hh;      // [G*H, H]
  const S* hx;             // [B, H]
  const S* cx;             // [B, H], LSTM only

  FUSED_RNN_INLINE int time(int step) const { return down ? T - 1 - step : step; }
  FUSED_RNN_INLINE int to_next() const { return down ? -1 : 1; }  // from a step's time to that of the next step
  FUSED_RNN_INLINE bool has_time(int t) const { return uint32_t(t) < uint32_t(T); }
  // Arrays of a chunk hold its times in rising order, from this one on.
  FUSED_RNN_INLINE int lowest_time() const { return down ? T - begin - count : begin; }
  FUSED_RNN_INLINE int place(int t) const { return t - lowest_time(); }
  FUSED_RNN_INLINE bool is_first() const { return begin == 0; }
  FUSED_RNN_INLINE bool is_last() const { return begin + count == T; }

  // A length outside [0, T] would make the kernels read past an array, and nobody waits for the device to check it.
  FUSED_RNN_INLINE int length(int b) const {
    if (!lengths) return T;
    const int64_t length = lengths[b];
    return length < 0 ? 0 : length > T ? T : int(length);
  }
  // Where a sequence must begin for the state before time t to be zero, as LayerArgs::starts_anew has it.
  FUSED_RNN_INLINE int beginning(int t) const { return reverse ? t + 1 : t; }
  FUSED_RNN_INLINE int step_before(int t) const { return reverse ? t + 1 : t - 1; }  // in the forward's order
  FUSED_RNN_INLINE int first_time(int b) const { return reverse ? length(b) - 1 : 0; }
  FUSED_RNN_INLINE bool starts_anew(int t, int b) const {
    const int begin = beginning(t);
    return resets && begin < length(b) && resets[int64_t(begin) * B + b];
  }
};

template <class S>
struct ForwardSteps : Steps<S> {
  const float* gates_x;  // [count, B, G*H]: weight_ih x
  const S* bias_ih;      // [G*H] or null
  const S* bias_hh;      // [G*H] or null
  S* output;             // [T, B, H], zero where a row is not active
  S* hy;                 // [B, H]: the state h, written by every chunk
  S* cy;                 // [B, H], LSTM only, written by the last chunk
  float* c;              // [B, H], LSTM only: the state c; null where one chunk is all
  S* saved;              // [T, B, kSaved, H] or null
};

template <class S>
struct BackwardSteps : Steps<S> {
  const S* grad_output;  // [T, B, H] or null for zeros
  const S* grad_hy;      // [B, H] or null for zeros
  const S* grad_cy;      // [B, H] or null for zeros
  const S* output;       // [T, B, H]
  const S* saved;        // [T, B, kSaved, H]
  float* grad_h;         // [B, H]: the state, d loss / d h
  float* grad_c;         // [B, H], LSTM only: the state, d loss / d c
  S* grad_hx;            // [B, H], written by the last chunk
  S* grad_cx;            // [B, H], LSTM only, written by the last chunk
  S* grads_x;            // [count, B, G*H]: d loss / d gates_x, zero where a row is not active
  S* grads_h;            // [count, B, G*H]: d loss / d gates_h; the same array as grads_x where they are the same
  S* h_before;           // [count, B, H]: the h that weight_hh multiplied, zero where a row is not active
  S* between;            // [count, B, H]: r * h or m, the left factor of a step's second product; null without one
};

// What the blocks of a group exchange through global memory; of a launch with several blocks a group only.
struct Mailbox {
  unsigned char* tiles;  // [parts, groups, mail_bytes]
  unsigned* flags;       // [parts, groups, flags]; zero before the launch
  unsigned* gave_up;     // becomes 1 where a block has waited too long for another one
};

// A launch of a persistent kernel. Its parts, each some steps of a layer in one direction, run side by side on blocks
// of their own: part blockIdx.y. Sizes, lengths and resets are the same for all of them, and all save or none.
template <class S>
struct Recurrence {
  S parts[kMostTogether];  // ForwardSteps or BackwardSteps
  Layout layout;
  int first_row;  // of the batch; the launch takes as many as its groups have
  Mailbox mailbox;

  // Fields that are equal in all parts are read from the first one, whose address is a constant.
  FUSED_RNN_INLINE S part(unsigned i) const {
    S one = parts[i];
    one.T = parts[0].T, one.B = parts[0].B, one.H = parts[0].H, one.lengths = parts[0].lengths;
    one.resets = parts[0].resets;
    return one;
  }
};

// One step of the stepwise tier, a chunk by itself, and what its matmuls gave or take.
template <class S>
struct ForwardStep {
  ForwardSteps<S> steps;
  float* gates_h;  // [B, G*H], without bias
  S* between;      // [B, H]: r * h or m, the left factor of the second product; null without one
};

template <class S>
struct BackwardStep {
  BackwardSteps<S> steps;
  const float* grad_between;  // [B, H]: d loss / d (r * h) or d m, if there are two products
};

// The same for h where it is projected, with P in place of H.
template <class S>
struct ProjectedStep {
  ForwardSteps<S> steps;
  const float* h;  // [B, P]
};

template <class S>
struct ProjectedGradStep {
  BackwardSteps<S> steps;
  S* grads_output;  // [B, P]: d loss / d h, zero where a row is not active
};

// from and to: [count, B, width]; zeros where a row is not active.
template <class S>
struct ActiveCopy {
  Steps<S> steps;
  int width;
  const S* from;
  S* to;
};

// from and to: [B, H]; zeros where a new sequence begins at the first time of the steps.
template <class From, class To>
struct KeptCopy {
  Steps<To> steps;
  const From* from;
  To* to;
};

template <class To>
struct Conversion {
  int64_t n;
  const float* from;
  To* to;
};

}  // namespace fused_rnn
