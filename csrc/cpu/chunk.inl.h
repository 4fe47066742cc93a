// Chunks of steps, which forward and backward take at once: their rows, and in the forward those of x as factors.
// Included by each instruction set's source file.
#pragma once

#include "layout.inl.h"

namespace fused_rnn {
namespace {

// Steps [t0, t0 + n) of a part, and its rows in them, one after the other: at each step those up to the last that is
// active. In the order in which they are taken, down or up, steps [done, done + n): one, and more as long as they
// `fit(t, rows)` with `rows` rows in all.
struct Chunk {
  static constexpr int64_t kSteps = 1024;  // at most
  int64_t t0, n = 0, b0;
  int64_t begins[kSteps + 1];  // of the rows of step t0 + i, and at n their number

  template <class Args, class Fits>
  FUSED_RNN_INLINE Chunk(const Args& args, const Division::Part& part, bool down, int64_t done, const Fits& fits)
      : b0(part.b0) {
    const auto step = [&](int64_t i) { return down ? args.T - 1 - done - i : done + i; };
    const auto count = [&](int64_t t) { return args.active_rows(t, part.b0, part.b1) - part.b0; };
    int64_t rows = 0;
    do rows += count(step(n++));
    while (n < kSteps && done + n < args.T && fits(step(n), rows + count(step(n))));
    t0 = down ? step(n - 1) : step(0);
    begins[0] = 0;
    for (int64_t i = 0; i < n; ++i) begins[i + 1] = begins[i] + count(t0 + i);
  }
  FUSED_RNN_INLINE int64_t rows() const { return begins[n]; }
  FUSED_RNN_INLINE int64_t begin(int64_t t) const { return begins[t - t0]; }
  FUSED_RNN_INLINE int64_t count(int64_t t) const { return begins[t - t0 + 1] - begins[t - t0]; }
};

// Rows (step, batch) whose gradients are multiplied while still in cache.
constexpr int64_t kChunkRows = kAmx ? 512 : 256;

// The steps and rows whose gradients are multiplied together, with the way back from a row to its step.
struct GradChunk : Chunk {
  // Of row k: its step, as i, and its row in memory. Not needed for a single step, which may have more rows.
  int64_t step[kChunkRows], in_memory[kChunkRows];
  int64_t first_in_memory;  // row of row 0

  template <class Args>
  FUSED_RNN_INLINE GradChunk(const Args& args, int64_t done)
      : Chunk(args, {0, args.B}, !args.reverse, done, [](int64_t, int64_t rows) { return rows <= kChunkRows; }) {
    first_in_memory = args.row(t0, 0);
    for (int64_t i = 0; n > 1 && i < n; ++i)
      for (int64_t k = begins[i]; k < begins[i + 1]; ++k) {
        step[k] = i;
        in_memory[k] = args.row(t0 + i, k - begins[i]);
      }
  }
  FUSED_RNN_INLINE int64_t row(int64_t k) const { return n > 1 ? in_memory[k] : first_in_memory + k; }
  // Rows from k on of a matrix [rows in memory, width].
  template <class T>
  FUSED_RNN_INLINE Rows<T> rows_of(T* matrix, int64_t width, int64_t k) const {
    if (n > 1) return {matrix, width, in_memory + k};
    return {matrix + row(k) * width, width};
  }
  FUSED_RNN_INLINE int64_t t(int64_t k) const { return t0 + (n > 1 ? step[k] : 0); }  // step and batch row of row k
  FUSED_RNN_INLINE int64_t b(int64_t k) const { return k - begins[n > 1 ? step[k] : 0]; }
};

// Numbers of a row of k as factors, zeros at its end.
template <class F>
int64_t factors(int64_t k) {
  constexpr int64_t kBytes = kAmx ? 64 : Vec<typename Factor<F>::A>::kLanes;  // of int8, written or multiplied at once
  return kScaled<F> ? ceil_div(k, kBytes) * kBytes : words<F>(k) * Factor<F>::kDepth;
}

// Rows of x as factors: where they are, or of a chunk, each worker's own.
template <class S, class F>
class InputRows {
  using Row = left_t<F>;

 public:
  // rows: of a chunk, at most.
  InputRows(const LayerArgs<S>& args, bool in_place, int64_t workers, int64_t rows)
      : args_(args),
        in_place_(in_place),
        most_rows_(rows),
        row_(in_place ? args.I : factors<F>(args.I)),
        own_(in_place ? 0 : workers * rows * row_),
        scales_(kScaled<F> ? workers * rows : 0) {}

  // Makes the factors of a worker's part of a chunk, unless x has them.
  void take(const Worker& worker, const Division::Part& part, const Chunk& chunk) const {
    if (in_place_) return;
    Row* to = own_of(worker);
    RowScale* scale = scales_of(worker);
    for (int64_t t = chunk.t0; t < chunk.t0 + chunk.n; ++t)
      for (int64_t b = part.b0; b < part.b0 + chunk.count(t); ++b, to += row_) {
        const S* const row = args_.x + args_.row(t, b) * args_.I;
        if constexpr (kScaled<F>)
          *scale++ = quantize(row, args_.I, to, row_);
        else
          copy_padded(row, args_.I, to, row_);
      }
  }

  // The rows from b on at step t of a chunk.
  Left<F> rows(const Worker& worker, const Chunk& chunk, int64_t t, int64_t b) const {
    if constexpr (std::is_same<S, Row>::value)
      if (in_place_) return {args_.x + args_.row(t, b) * args_.I, row_};
    const int64_t k = chunk.begin(t) + b - chunk.b0;
    return {own_of(worker) + k * row_, row_, Factor<F>::kDepth, Left<F>::kBlock, 1, false, false,
            scales_of(worker) + k};
  }

 private:
  Row* own_of(const Worker& worker) const { return own_ + worker.begin * most_rows_ * row_; }
  RowScale* scales_of(const Worker& worker) const { return scales_ + worker.begin * most_rows_; }

  const LayerArgs<S>& args_;
  const bool in_place_;
  const int64_t most_rows_, row_;
  const Scratch<Row> own_;          // [workers, rows, row]
  const Scratch<RowScale> scales_;  // of rows of int8
};

}  // namespace
}  // namespace fused_rnn
