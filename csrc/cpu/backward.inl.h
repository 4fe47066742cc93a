// Backward of one layer in one direction, in one team of workers. Included by each instruction set's source file.
//
// Chunks of steps, last first. In each, the workers run the steps backward and leave the gradients of the gates in
// grads_x and grads_h; then the sums over the chunk's rows (grad_weight, grad_bias) and its grad_x are products of
// matrices that are still in cache. Every element is summed in one fixed order.
#pragma once

#include "chunk.inl.h"
#include "columns.inl.h"

namespace fused_rnn {
namespace {

constexpr int64_t kGatheredRows = 96;  // of a block of the weights' gradients: its factors stay in the cache
constexpr int64_t kUnpackedRows = 64;  // at most this many rows (step, batch) in several steps: weight_hh is not packed
constexpr int64_t kFewRows = 64;       // at most this many rows: writing the weights' gradients is most of the time

// F: the factors of products.
template <class Cell, class S, class F>
class Backward {
  using A = accumulate_t<S>;
  using V = Vec<A>;
  using Part = Division::Part;
  using Grads = StepGrads<V, typename Cell::State, Cell::kGates>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = kHiddenGates<Cell>;
  static constexpr int64_t kLanes = V::kLanes, kDepth = Factor<F>::kDepth;
  static constexpr bool kInPlace = std::is_same<S, A>::value;  // the sums grow where they are returned

 public:
  explicit Backward(const BackwardArgs<S>& args)
      : args_(args),
        units_{args.H},
        h_units_{args.P},
        rows_(most(args.B, least(args.rows, kChunkRows))),
        width_(row_width(kGates * args.H)),
        h_width_(projects() ? row_width(args.P) : 0),
        hidden_(right_of(args.weight_hh, args.T > 1 || args.grad_hx ? kFirst * args.H : 0, args.P)),
        second_(right_of(second_weight(), multiplied_second(), args.H)),
        input_{args.grad_x ? kGates * args.H : 0, args.I},
        x_{args.grad_weight_hh ? least(rows_, kChunkRows) : 0, args.I},
        h_(h_like(x_)),
        between_(between_like(x_)),
        division_(division(args)),
        is_one_chunk_(args.rows <= kChunkRows && args.T <= Chunk::kSteps),
        is_one_step_(is_one_chunk_ && args.T == 1),
        hidden_weight_(is_one_step_ ? 0 : hidden_.packed_elements()),
        second_weight_(is_one_step_ ? 0 : second_.packed_elements()),
        input_weight_(is_one_chunk_ ? 0 : input_.packed_elements()),
        block_(is_one_chunk_ ? division_.workers * block_elements() : 0),
        once_sums_(is_one_chunk_ ? sums_elements() : 0),
        grads_x_(rows_ * width_),
        grads_h_(Cell::kGradsDiffer ? rows_ * width_ : 0),
        grads_output_(rows_ * h_width_),
        grad_h_(args.B * h_units_.padded()),
        grad_c_(Cell::kSavedCell >= 0 ? args.B * units_.padded() : 0),
        grad_between_(second_.K ? args.B * units_.padded() : 0),
        packed_x_(x_.elements()),
        packed_h_(h_.elements()),
        packed_between_(between_.elements()),
        between_rows_(between_.K * args.H),
        zeros_(most(args.I, most(args.H, args.P))),
        columns_(division_.workers * columns_size()),
        sums_ih_(kInPlace ? 0 : weight_rows() * args.I),
        sums_hh_(kInPlace ? 0 : weight_rows() * args.P),
        sums_hr_(kInPlace || !args.grad_weight_hr ? 0 : args.P * args.H),
        sums_bias_ih_(weight_rows()),
        sums_bias_hh_(Cell::kGradsDiffer ? weight_rows() : 0) {
    copy_padded<S, S>(nullptr, 0, zeros_, most(args.I, most(args.H, args.P)));
    const auto end_rows = [&](F* rows, int64_t n, int64_t width) {
      for (int64_t row = 0; rows && row < rows_; ++row)
        for (int64_t j = n; j < width; ++j) rows[row * width + j] = F(A(0));
    };
    end_rows(grads_x_, kGates * args.H, width_);
    end_rows(grads_h_, kGates * args.H, width_);
    end_rows(grads_output_, args.P, h_width_);
  }

  static Division division(const LayerSizes& sizes) {
    const auto panels = [&](int64_t n) { return Panels<F>{0, n, nullptr, tile_vectors<4>(sizes.B)}.count(); };
    return {sizes, panels(sizes.H), panels(sizes.P), 4.0 * kGates, kGates * int64_t(sizeof(F))};
  }

  void run() {
    run_team(division_.workers, [this](const Worker& worker) { run_part(worker, division_.part(worker)); });
  }

 private:
  bool projects() const { return Cell::kProjects && args_.weight_hr; }
  // From a row of n numbers to the next: not a power of two, for most n.
  static int64_t row_width(int64_t n) { return words<F>(n) * kDepth + kLanes * kDepth; }

  // The matrix of a step's second product, [K, H]: weight_hn with the reset before, weight_hr with a projection.
  const S* second_weight() const { return projects() ? args_.weight_hr : args_.weight_hh + kFirst * args_.H * args_.P; }
  int64_t multiplied_second() const {
    return projects() ? args_.P : Cell::kResetBefore && args_.multiplies_h() ? args_.H : 0;
  }

  // weight_hh, rows of it, or weight_hr as the right-hand matrix [K, N]. Few rows are multiplied faster than it is
  // packed.
  Panels<F> right_of(const S* weight, int64_t K, int64_t N) const {
    if constexpr (std::is_same<S, F>::value && kDepth == 1)
      if (args_.T > 1 && args_.rows <= kUnpackedRows && N % kLanes == 0)
        return {K, N, weight, tile_vectors<4>(args_.B)};
    return {K, N, nullptr, tile_vectors<4>(args_.B)};
  }

  // What weight_hh multiplied, as the right-hand matrix for the rows of x: nothing, in a single step from zeros.
  Panels<F> h_like(const Panels<F>& x) const { return {args_.multiplies_h() ? x.K : 0, args_.P}; }
  // The same of the second product.
  Panels<F> between_like(const Panels<F>& x) const { return {second_.K ? x.K : 0, args_.H}; }

  // ---- Places ----

  A* grad_h(int64_t b, int64_t p) const { return grad_h_ + b * h_units_.padded() + p * kLanes; }
  A* grad_c(int64_t b, int64_t p) const { return grad_c_ + b * units_.padded() + p * kLanes; }
  A* grad_between(int64_t b, int64_t p) const { return grad_between_ + b * units_.padded() + p * kLanes; }
  F* grads_output(int64_t row, int64_t p) const { return grads_output_ + row * h_width_ + p * kLanes; }
  F* grads_x(int64_t row, int g, int64_t p) const { return grads_x_ + row * width_ + g * args_.H + p * kLanes; }
  F* grads_h(int64_t row, int g, int64_t p) const {
    return (Cell::kGradsDiffer ? grads_h_ : grads_x_) + row * width_ + g * args_.H + p * kLanes;
  }
  int64_t weight_rows() const { return args_.grad_weight_hh ? kGates * args_.H : 0; }
  A* sums_ih() const {
    if constexpr (kInPlace) return args_.grad_weight_ih;
    return sums_ih_;
  }
  A* sums_hh() const {
    if constexpr (kInPlace) return args_.grad_weight_hh;
    return sums_hh_;
  }
  A* sums_hr() const {
    if constexpr (kInPlace) return args_.grad_weight_hr;
    return sums_hr_;
  }
  int64_t block_elements() const {
    return most(second_.block_elements(), most(hidden_.block_elements(), input_.block_elements()));
  }
  int64_t sums_elements() const {
    return most(second_.sums_elements(rows_), most(hidden_.sums_elements(rows_), input_.sums_elements(rows_)));
  }
  F* block_of(const Worker& worker) const { return block_ + worker.begin * block_elements(); }
  int64_t columns_size() const { return columns_elements<F>(x_.K, kGatheredRows); }
  // Vectors of units that belong to panels [p0, p1) of second_, and of h that belong to panels [q0, q1) of hidden_.
  int64_t first_unit(const Part& part) const { return second_.first_vector(part.p0); }
  int64_t last_unit(const Part& part) const { return second_.first_vector(part.p1); }
  int64_t first_of_h(const Part& part) const { return hidden_.first_vector(part.q0); }
  int64_t end_of_h(const Part& part) const { return hidden_.first_vector(part.q1); }

  // ---- The pass of one worker ----

  void run_part(const Worker& worker, const Part& part) const {
    [[maybe_unused]] const TileRegisters registers;
    const auto& a = args_;
    if (!is_one_step_) {
      pack_share(worker, hidden_, hidden_weight_, hidden_rows());
      pack_share(worker, second_, second_weight_, second_rows());
    }
    if (!is_one_chunk_) pack_share(worker, input_, input_weight_, input_rows());
    for (int64_t b = part.b0; b < part.b1; ++b) {
      for (int64_t p = first_of_h(part); p < end_of_h(part); ++p)
        store(grad_h(b, p), a.grad_hy ? load<A>(a.grad_hy + b * a.P + p * kLanes, h_units_.count(p)) : V(A(0)));
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t p = first_unit(part); p < last_unit(part); ++p)
          store(grad_c(b, p), a.grad_cy ? load<A>(a.grad_cy + b * a.H + p * kLanes, units_.count(p)) : V(A(0)));
    }
    worker.wait();
    for (int64_t done = 0; done < a.T;) {  // in the opposite order of the forward's
      const GradChunk chunk(a, done);
      for (int64_t i = 0; i < chunk.n; ++i) step(worker, part, chunk.t0 + (a.reverse ? i : chunk.n - 1 - i), chunk);
      if (a.grad_weight_hh) pack_rows(worker, chunk, 0);
      worker.wait();
      if (a.grad_x) write_grad_x(worker, chunk);
      if (a.grad_weight_hh) add_weight_grads(worker, chunk, 0, done > 0);
      worker.wait();
      // The other rows of a single large step.
      for (int64_t k0 = kChunkRows; a.grad_weight_hh && k0 < chunk.rows(); k0 += kChunkRows) {
        pack_rows(worker, chunk, k0);
        worker.wait();
        add_weight_grads(worker, chunk, k0, true);
        worker.wait();
      }
      done += chunk.n;
    }
    if (a.grad_weight_hh) write_sums(worker);
    for (int64_t b = part.b0; b < part.b1; ++b) {
      for (int64_t p = first_of_h(part); a.grad_hx && p < end_of_h(part); ++p)
        store(a.grad_hx + b * a.P + p * kLanes, load<A>(grad_h(b, p)), h_units_.count(p));
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t p = first_unit(part); a.grad_cx && p < last_unit(part); ++p)
          store(a.grad_cx + b * a.H + p * kLanes, load<A>(grad_c(b, p)), units_.count(p));
    }
  }

  // The rows of the matrices hidden_, second_ and input_.
  Rows<const S> hidden_rows() const { return {args_.weight_hh, args_.P}; }
  Rows<const S> second_rows() const { return {second_weight(), args_.H}; }
  Rows<const S> input_rows() const { return {args_.weight_ih, args_.I}; }

  // This worker's share of the panels of a matrix.
  template <class RowOf>
  static void pack_share(const Worker& worker, const Panels<F>& panels, F* packed, const RowOf& row_of) {
    if (panels.K == 0) return;
    panels.pack(worker.first(panels.count()), worker.last(panels.count()), packed, row_of);
  }

  // ---- The steps ----

  // All gates' gradients must be there before the next product.
  void meet(const Worker& worker) const {
    if (!division_.by_rows) worker.wait();
  }

  // Words in a part of a sum over the gates.
  int64_t gates_block() const { return most(2 * kLeastBlock, sum_block(kGates * args_.H)); }

  Left<F> left(const F* rows, int64_t active) const {
    return {rows, width_, kDepth, gates_block(), chains_for(active)};
  }

  // Step t of a part: from the gradient of the state after it to that of the state before it.
  void step(const Worker& worker, const Part& part, int64_t t, const GradChunk& chunk) const {
    const auto& a = args_;
    const int64_t active = a.active_rows(t, part.b0, part.b1), row0 = chunk.begin(t), all = chunk.count(t);
    if constexpr (Cell::kResetBefore)
      if (a.multiplies_h()) {
        for (int64_t b = part.b0; b < active; ++b)
          for (int64_t p = first_unit(part); p < last_unit(part); ++p) {
            V grad(A(0));
            if (t < a.length(b)) grad = Cell::candidate_grad(grad_state(t, b, p), Saved(*this, t, b, p).s);
            store(grads_x(row0 + b, kFirst, p), grad, units_.count(p));
          }
        meet(worker);
        multiply_second(worker, part, t, active, left(grads_x(row0 + part.b0, kFirst, 0), all));
      }
    if (projects()) {
      for (int64_t b = part.b0; b < active; ++b)
        for (int64_t p = first_of_h(part); p < end_of_h(part); ++p) {
          V grad(A(0));
          if (t < a.length(b)) {
            grad = grad_of_h(t, b, p);
            store(grad_h(b, p), V(A(0)));
          }
          store(grads_output(row0 + b, p), grad, h_units_.count(p));
        }
      meet(worker);
      const int64_t block = most(2 * kLeastBlock, sum_block(a.P));
      multiply_second(worker, part, t, active,
                      {grads_output(row0 + part.b0, 0), h_width_, kDepth, block, chains_for(all)});
    }
    for (int64_t b = part.b0; b < active; ++b)
      for (int64_t p = first_unit(part); p < last_unit(part); ++p) {
        if (t < a.length(b))
          cell(t, row0 + b, b, p);
        else
          for (int g = 0; g < kGates; ++g) store_grads(row0 + b, g, p, V(A(0)), V(A(0)));
      }
    const bool is_first = t == (a.reverse ? a.T - 1 : 0);  // in the forward's order: before it there is hx only
    if (is_first && !a.grad_hx) return;
    meet(worker);
    multiply_step(worker, {part.b0, active, part.q0, part.q1}, t % 2 == 1, hidden_, hidden_weight_, hidden_rows(),
                  left(grads_h(row0 + part.b0, 0, 0), all), grad_h_, h_units_.padded(), true);
    for (int64_t b = part.b0; a.resets && b < active; ++b) {
      if (!a.starts_anew(t, b)) continue;
      for (int64_t p = first_of_h(part); p < end_of_h(part); ++p) store(grad_h(b, p), V(A(0)));
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t p = first_unit(part); p < last_unit(part); ++p) store(grad_c(b, p), V(A(0)));
    }
  }

  // The second product of step t, to grad_between.
  void multiply_second(const Worker& worker, const Part& part, int64_t t, int64_t active, const Left<F>& left) const {
    multiply_step(worker, {part.b0, active, part.p0, part.p1}, t % 2 == 1, second_, second_weight_, second_rows(), left,
                  grad_between_, units_.padded(), false);
  }

  // Multiplies `left` by panels [part.p0, part.p1) of a weight. Rows [part.b0, part.b1) of the product go to those of
  // `to`, each of `columns` numbers, or are added to the numbers there if `onto`.
  void multiply_step(const Worker& worker, const Part& part, bool down, const Panels<F>& weight, const F* packed,
                     const Rows<const S>& source, const Left<F>& left, A* to, int64_t columns, bool onto) const {
    const auto to_rows = [&](int64_t b) { return Rows<A>{to + b * columns, columns}; };
    if (is_one_step_)
      return weight.multiply_once(part.p0, part.p1, source, block_of(worker),
                                  once_sums_ + weight.sums_elements(part.b0), part.rows(), left, to_rows(part.b0),
                                  columns, onto);
    in_slices(part.b0, part.b1, left.row * int64_t(sizeof(F)), [&](int64_t b0, int64_t b1) {
      Left<F> rows = left;
      rows.data += (b0 - part.b0) * left.row;
      each_panel(part.p0, part.p1, down, [&](int64_t p, int64_t next) {
        weight.multiply(p, next, packed, b1 - b0, rows, to_rows(b0), columns, onto);
      });
    });
  }

  // The cell's backward for row b and the units of panel p; leaves the direct part of the previous state's gradient.
  FUSED_RNN_INLINE void cell(int64_t t, int64_t row, int64_t b, int64_t p) const {
    const auto& a = args_;
    const int64_t unit = p * kLanes;
    const int n = units_.count(p);
    const bool anew = a.starts_anew(t, b), first = anew || t == a.first_step(b);
    const int64_t before = first ? 0 : a.row(a.step_before(t), b);
    typename Cell::State prev;
    if constexpr (!Cell::kProjects)  // which does not look at h
      prev.h = load<A>((first ? initial_h(b, anew) : a.output + before * a.output_row) + unit, n);
    if constexpr (Cell::kSavedCell >= 0)
      prev.c = first ? load<A>((a.cx && !anew ? a.cx + b * a.H : zeros_) + unit, n)
                     : load<A>(a.saved + (before * Cell::kSaved + Cell::kSavedCell) * a.H + unit, n);
    const typename Cell::State grad = grad_state(t, b, p);
    const Saved saved(*this, t, b, p);
    Grads d;
    if constexpr (Cell::kResetBefore)
      d = Cell::backward(grad, prev, saved.s, a.multiplies_h() ? load<A>(grad_between(b, p)) : V(A(0)));
    else
      d = Cell::backward(grad, prev, saved.s);
    for (int g = 0; g < kGates; ++g) store_grads(row, g, p, d.x[g], d.h[g]);
    if (!projects()) store(grad_h(b, p), d.prev.h);
    if constexpr (Cell::kSavedCell >= 0) store(grad_c(b, p), d.prev.c);
  }

  // d loss / d h after step t
  FUSED_RNN_INLINE V grad_of_h(int64_t t, int64_t b, int64_t p) const {
    const auto& a = args_;
    V grad = load<A>(grad_h(b, p));
    if (a.grad_output) grad += load<A>(a.grad_output + a.row(t, b) * a.output_row + p * kLanes, h_units_.count(p));
    return grad;
  }
  // d loss / d state of the cell after step t; with a projection its own h
  FUSED_RNN_INLINE typename Cell::State grad_state(int64_t t, int64_t b, int64_t p) const {
    typename Cell::State grad;
    grad.h = projects() ? load<A>(grad_between(b, p)) : grad_of_h(t, b, p);
    if constexpr (Cell::kSavedCell >= 0) grad.c = load<A>(grad_c(b, p));
    return grad;
  }

  struct Saved {
    typename Cell::Saved s;
    FUSED_RNN_INLINE Saved(const Backward& pass, int64_t t, int64_t b, int64_t p) {
      const auto& a = pass.args_;
      for (int k = 0; k < Cell::kSaved; ++k)
        s[k] = load<A>(a.saved + (a.row(t, b) * Cell::kSaved + k) * a.H + p * kLanes, pass.units_.count(p));
    }
  };

  FUSED_RNN_INLINE void store_grads(int64_t row, int g, int64_t p, V grad_x, V grad_h) const {
    store(grads_x(row, g, p), grad_x, units_.count(p));
    if constexpr (Cell::kGradsDiffer) store(grads_h(row, g, p), grad_h, units_.count(p));
  }

  // ---- The products of a chunk ----

  // grad_x of the chunk's steps = grads_x weight_ih
  void write_grad_x(const Worker& worker, const GradChunk& chunk) const {
    const auto& a = args_;
    const int64_t rows = chunk.rows(), panels = input_.count();
    if (is_one_chunk_)
      input_.multiply_once(worker.first(panels), worker.last(panels), input_rows(), block_of(worker), once_sums_, rows,
                           {grads_x(0, 0, 0), width_, kDepth, gates_block(), chains_for(rows)},
                           chunk.rows_of(a.grad_x, a.I, 0), a.I, a.adds_grad_x);
    else
      in_slices(worker.first(rows), worker.last(rows), width_ * int64_t(sizeof(F)), [&](int64_t r0, int64_t r1) {
        each_panel(0, panels, false, [&](int64_t p, int64_t next) {
          input_.multiply(p, next, input_weight_, r1 - r0, {grads_x(r0, 0, 0), width_, kDepth, gates_block()},
                          chunk.rows_of(a.grad_x, a.I, r0), a.I, a.adds_grad_x);
        });
      });
    for (int64_t i = worker.first(chunk.n); !a.adds_grad_x && !a.offsets && i < worker.last(chunk.n); ++i) {
      const int64_t t = chunk.t0 + i;
      const int64_t left = (a.B - chunk.count(t)) * a.I;  // of rows that are past their end
      copy_padded<S, S>(nullptr, 0, a.grad_x + (t + 1) * a.B * a.I - left, left);
    }
  }

  // h of row b before its first step, or zeros.
  FUSED_RNN_INLINE const S* initial_h(int64_t b, bool anew) const {
    return args_.hx && !anew ? args_.hx + b * args_.P : zeros_;
  }

  bool is_active(const GradChunk& chunk, int64_t k) const { return chunk.t(k) < args_.length(chunk.b(k)); }

  // What weight_hh multiplied in row k of the chunk. Rows that were not active have no gradient; zero keeps it so even
  // where the padding holds NaN.
  const S* h_before(const GradChunk& chunk, int64_t k) const {
    const auto& a = args_;
    const int64_t t = chunk.t(k), b = chunk.b(k);
    if (!is_active(chunk, k) || a.starts_anew(t, b)) return zeros_;
    return t == a.first_step(b) ? initial_h(b, false) : a.output + a.row(a.step_before(t), b) * a.output_row;
  }

  int64_t rows_from(const GradChunk& chunk, int64_t k0) const { return least(kChunkRows, chunk.rows() - k0); }

  // The right-hand matrices of the weights' gradients, for at most kChunkRows rows from k0 on: x and h, and r * h or m
  // for a forward with two products.
  void pack_rows(const Worker& worker, const GradChunk& chunk, int64_t k0) const {
    const auto& a = args_;
    const Panels<F> x{rows_from(chunk, k0), a.I}, h = h_like(x), between = between_like(x);
    pack_share(worker, x, packed_x_, [&](int64_t k) {
      return is_active(chunk, k0 + k) ? a.x + chunk.row(k0 + k) * a.I : static_cast<const S*>(zeros_);
    });
    pack_share(worker, h, packed_h_, [&](int64_t k) { return h_before(chunk, k0 + k); });
    if constexpr (Cell::kResetBefore || Cell::kProjects) {
      const int64_t begin = worker.first(between.count()), end = worker.last(between.count());
      for (int64_t k = 0; k < between.K; ++k)
        for (int64_t v = between.first_vector(begin); v < between.first_vector(end); ++v) {
          const int64_t j = v * kLanes;
          const A* const saved = a.saved + chunk.row(k0 + k) * Cell::kSaved * a.H + j;
          store(between_rows_ + k * a.H + j, between_at(chunk, k0 + k, saved, j, units_.count(v)), units_.count(v));
        }
      pack_share(worker, between, packed_between_,
                 [&](int64_t k) { return static_cast<const F*>(between_rows_) + k * a.H; });
    }
  }

  // r * h or m, the left factor of the forward's second product: numbers [j, j + n) of row k of the chunk.
  FUSED_RNN_INLINE V between_at(const GradChunk& chunk, int64_t k, const A* saved, int64_t j, int n) const {
    const auto field = [&](int i) { return load<A>(saved + i * args_.H, n); };
    if constexpr (Cell::kProjects)
      return Cell::output(field(Cell::kO), field(Cell::kC));
    else
      return field(0) * load<A>(h_before(chunk, k) + j, n);  // r * h
  }

  // Rows of a block of the weights' gradients: at most kGatheredRows, and about as many for every worker.
  int64_t gathered_rows() const {
    const int64_t share = ceil_div(kGates * args_.H, division_.workers);
    return ceil_div(share, ceil_div(share, kGatheredRows));
  }

  // Writes the sums over those rows to grad_weight and grad_bias, or adds them to the sums of earlier chunks. In blocks
  // of gate rows; no block crosses from the gates that multiply h to the one that multiplies r * h.
  void add_weight_grads(const Worker& worker, const GradChunk& chunk, int64_t k0, bool onto) const {
    const auto& a = args_;
    const Panels<F> x{rows_from(chunk, k0), a.I}, h = h_like(x), between = between_like(x);
    F* const columns = columns_ + worker.begin * columns_size();
    const int64_t first = kFirst * a.H, all = kGates * a.H, at_once = gathered_rows();
    const int64_t split = ceil_div(first, at_once), blocks = split + ceil_div(all - first, at_once);
    for (int64_t i = worker.first(blocks); i < worker.last(blocks); ++i) {
      const int64_t r0 = i < split ? i * at_once : first + (i - split) * at_once;
      const int64_t count = least(at_once, (i < split ? first : all) - r0);
      const auto columns_of_gates = [&](const F* grads, A* bias) {
        return columns_of(grads + k0 * width_ + r0, width_, x.K, count, columns, bias + r0, onto);
      };
      Left<F> left = columns_of_gates(grads_x_, sums_bias_ih_);
      add_block(x, packed_x_, left, r0, count, sums_ih(), onto);
      if constexpr (Cell::kGradsDiffer) left = columns_of_gates(grads_h_, sums_bias_hh_);
      if (i < split)
        add_block(h, packed_h_, left, r0, count, sums_hh(), onto);
      else
        add_block(between, packed_between_, left, r0, count, sums_hh(), onto);
    }
    if (!projects()) return;
    const int64_t parts = ceil_div(a.P, at_once);
    for (int64_t i = worker.first(parts); i < worker.last(parts); ++i) {
      const int64_t r0 = i * at_once, count = least(at_once, a.P - r0);
      const Left<F> left =
          columns_of<F, A>(grads_output_ + k0 * h_width_ + r0, h_width_, x.K, count, columns, nullptr, onto);
      add_block(between, packed_between_, left, r0, count, sums_hr(), onto);
    }
  }

  // left[r, :] right to or onto sum[r0 + r, :], for r < count
  void add_block(const Panels<F>& right, const F* packed, Left<F> left, int64_t r0, int64_t count, A* sum,
                 bool onto) const {
    left.block = sum_block(args_.rows);
    if (args_.rows <= kFewRows) return right.multiply_along(packed, count, left, sum + r0 * right.N, onto);
    each_panel(0, right.count(), false, [&](int64_t p, int64_t next) {
      right.multiply(p, next, packed, count, left, Rows<A>{sum + r0 * right.N, right.N}, right.N, onto);
    });
  }

  // This worker's share of n numbers.
  static void write_share(const Worker& worker, S* to, const A* from, int64_t n) {
    for (int64_t i = worker.first(n); to && i < worker.last(n); ++i) to[i] = S(from[i]);
  }

  void write_sums(const Worker& worker) const {
    const auto& a = args_;
    if constexpr (!kInPlace) {
      write_share(worker, a.grad_weight_ih, sums_ih_, weight_rows() * a.I);
      write_share(worker, a.grad_weight_hh, sums_hh_, weight_rows() * a.P);
      write_share(worker, a.grad_weight_hr, sums_hr_, a.P * a.H);
    }
    write_share(worker, a.grad_bias_ih, sums_bias_ih_, weight_rows());
    write_share(worker, a.grad_bias_hh, Cell::kGradsDiffer ? sums_bias_hh_ : sums_bias_ih_, weight_rows());
  }

  const BackwardArgs<S>& args_;
  const Units<A> units_, h_units_;           // h_units_: numbers of h
  const int64_t rows_;                       // of a chunk, at most
  const int64_t width_, h_width_;            // from a row of grads_x and grads_h to the next, and of grads_output
  const Panels<F> hidden_, second_, input_;  // weight_hh, second_weight(), weight_ih
  const Panels<F> x_, h_, between_;          // of the most rows that are packed at once
  const Division division_;
  const bool is_one_chunk_, is_one_step_;  // then weight_ih is multiplied once, and weight_hh
  const Scratch<F> hidden_weight_, second_weight_, input_weight_;
  const Scratch<F> block_;              // of multiply_once: each worker's packed rows of a weight
  const Scratch<A> once_sums_;          // of multiply_once: the sums of all rows
  const Scratch<F> grads_x_, grads_h_;  // [rows, width]: d loss / d gates_x, d gates_h where it differs
  const Scratch<F> grads_output_;       // [rows, h_width]: d loss / d h, where it is projected
  const Scratch<A> grad_h_, grad_c_;    // d loss / d h and d c between two steps: [B, padded] each
  const Scratch<A> grad_between_;       // [B, padded]: d loss / d (r * h) or d m
  const Scratch<F> packed_x_, packed_h_, packed_between_;
  const Scratch<F> between_rows_;  // [rows, H]: r * h or m
  const Scratch<S> zeros_;
  const Scratch<F> columns_;                      // each worker's gates' gradients as a left-hand matrix
  const Scratch<A> sums_ih_, sums_hh_, sums_hr_;  // [G*H, I], [G*H, P] and [P, H], unless they grow in place
  const Scratch<A> sums_bias_ih_, sums_bias_hh_;  // [G*H]; sums_bias_hh_ where it differs
};

}  // namespace
}  // namespace fused_rnn
