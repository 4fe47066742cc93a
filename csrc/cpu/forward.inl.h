// Forward of one layer in one direction, in one team of workers. Included by each instruction set's source file.
#pragma once

#include "chunk.inl.h"
#include "isa.h"

namespace fused_rnn {
namespace {

// A step of an LSTM or RNN with at least this many active rows multiplies x and h in one tile. Of fewer rows, x of
// several steps is projected at once: the tiles have more rows then, and weight_ih is read once for all these steps,
// which counts where the weights do not stay in the second-level cache (kJoinedFar): with AMX more than the tiles.
constexpr int64_t kJoinedNear = kAmx ? 9 : 6, kJoinedFar = kAmx ? INT64_MAX : 17;

// F: the factors of products, or of quantised weights. With int8, rows of x and h become int8 before each product of
// theirs; x is always projected, as its scale is not that of h.
template <class Cell, class S, class F>
class Forward {
  using A = accumulate_t<S>;
  using V = Vec<A>;
  using Row = left_t<F>;
  using Part = Division::Part;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kFirst = kHiddenGates<Cell>;
  static constexpr int kTogether = kGates - Cell::kApart;
  // Whether gates are of the sum of both products.
  static constexpr bool kAdds = Cell::kApart == 0 && !Cell::kResetBefore && !kScaled<F>;
  static constexpr int64_t kLanes = V::kLanes, kDepth = Factor<F>::kDepth;
  using Kept = std::conditional_t<kScaled<F>, A, Row>;  // what h is between two steps
  static constexpr bool kRoundsH = std::is_same<S, A>::value && !std::is_same<Kept, A>::value;  // to a factor
  static constexpr int64_t kWhole = kDepth * Factor<F>::kWords;  // numbers of K that a product takes at once
  // Vectors of units in a panel: a tile that is one vector wide would load about one factor for each product.
  static constexpr int kWide = kGates == 1 ? 2 : 1;
  // Of a step's second product: of weight_hn and r * h with the reset before, of weight_hr and the cell's own h, called
  // m, with a projection. A panel of that has two vectors for the same reason.
  static constexpr bool kMayProject = Cell::kProjects && !kQuantized<F>;
  static constexpr bool kTwoProducts = Cell::kResetBefore || kMayProject;
  static constexpr int kSecondWide = kMayProject ? 2 : kWide;

 public:
  explicit Forward(const ForwardArgs<S>& args)
      : args_(args),
        units_{args.H},
        h_units_{args.P},
        division_(division(args)),
        x_in_place_(std::is_same<S, Row>::value && args.I % kWhole == 0 && (!kAmx || packs())),
        x_row_(x_in_place_ ? args.I : factors<F>(args.I)),
        packs_late_(!kQuantized<F> && args.T == 1 && !division_.by_rows &&
                    !are_many(args.B * (x_row_ + h_row()) * sizeof(Row))),
        input_(panels<kGates, kWide>(args.weight_ih, args.quantized_ih, 0, args.I, args.H,
                                     args.T == 1 || is_always_joined() ? args.B : args.rows)),
        hidden_(panels<kFirst, kWide>(args.weight_hh, args.quantized_hh, 0, multiplied_h(), args.H, args.B)),
        second_(panels<1, kSecondWide>(projects() ? args.weight_hr : args.weight_hh, args.quantized_hh,
                                       Cell::kResetBefore ? kFirst : 0, multiplied_second(), args.P, args.B)),
        joined_rows_(input_.bytes() + hidden_.bytes() > near_bytes() ? kJoinedFar : kJoinedNear),
        bias_x_(units_.vectors() * kGates * kLanes),
        bias_h_(units_.vectors() * Cell::kApart * kLanes),
        rows_(most(division_.most_rows(), least(args.rows, near_bytes() / (division_.most_panels() * kWide * kGates *
                                                                           kLanes * int64_t(sizeof(A)))))),
        gates_x_(is_joined(args.T - 1) ? 0 : regions() * units_.vectors() * rows_ * kGates * kLanes),
        x_(args, x_in_place_, division_.workers, rows_),
        operand_x_(division_.workers * input_.operand_elements(rows_)),
        operand_h_(division_.workers * operand_h_elements()),
        scales_h_(kScaled<F> ? division_.workers * division_.most_rows() : 0),
        h_(2 * args.B * h_row()),
        exact_h_(kRoundsH ? args.B * h_units_.padded() : 0),
        between_(Cell::kResetBefore || projects() ? args.B * between_row() : 0),
        first_(Cell::kResetBefore ? units_.vectors() * args.B * kFirst * kLanes : 0),
        c_(Cell::kSavedCell >= 0 ? args.B * units_.padded() : 0) {}

  static Division division(const LayerSizes& sizes) {
    return {sizes, Units<A, kWide>{sizes.H}.panels(), Units<A, kSecondWide>{sizes.P}.panels(), 2.0 * kGates,
            kGates * int64_t(sizeof(F))};
  }

  static PanelLayout panel_layout() {
    return {kLanes, kWide, kTileVectors<kWide * kGates>, kScaled<F> ? Factor<int8_t>::kOffset : 0};
  }

  void run() {
    run_team(division_.workers, [this](const Worker& worker) { run_part(worker, division_.part(worker)); });
  }

 private:
  bool projects() const { return kMayProject && args_.weight_hr; }
  // Numbers of a row of h that weight_hh multiplies, and of a row in the second product of a step.
  int64_t multiplied_h() const { return args_.multiplies_h() ? args_.P : 0; }
  int64_t multiplied_second() const { return Cell::kResetBefore ? multiplied_h() : projects() ? args_.H : 0; }
  bool packs() const { return packing_pays<F, S>(args_.rows, args_.B, words<F>(args_.I) + words<F>(multiplied_h())); }
  // The gate panels of a weight with K columns: NG gates of `units` units, from gate0 on, for `rows` rows at once.
  template <int NG, int NU>
  GatePanels<NG, NU, S, F> panels(const S* weight, const QuantizedWeight& quantized, int gate0, int64_t K,
                                  int64_t units, int64_t rows) const {
    if constexpr (kQuantized<F>)
      return {quantized, gate0, K, units};
    else
      return {weight, gate0, K,
              units,  rows,  !packs() ? 0 : packs_late_ ? division_.workers : Units<A, NU>{units}.panels()};
  }
  // Panel p, to be multiplied before panel `next`. If panels are packed late, this packs p of each of `weights`.
  template <class... Weights>
  FUSED_RNN_INLINE Turn turn(const Worker& worker, int64_t p, int64_t next, const Weights&... weights) const {
    if (!packs_late_) return {p, p, next};
    (weights.pack(p, worker.begin), ...);
    return {p, worker.begin, -1};
  }
  // Some more than H: rows that are a power of two apart would share few lines of the first-level cache.
  int64_t h_row() const { return most(h_units_.padded(), words<F>(args_.P) * kDepth) + kLanes * kDepth; }
  int64_t between_row() const { return most(units_.padded(), words<F>(args_.H) * kDepth) + kLanes * kDepth; }
  Kept* h_at(Kept* h, int64_t b, int64_t v) const { return h + b * h_row() + v * kLanes; }
  Kept* between_at(int64_t b, int64_t v) const { return between_ + b * between_row() + v * kLanes; }
  A* exact_h_at(int64_t b, int64_t v) const { return exact_h_ + b * h_units_.padded() + v * kLanes; }
  // h of row b before a step, where `h` has its factors.
  FUSED_RNN_INLINE V h_before(Kept* h, int64_t b, int64_t v) const {
    return kRoundsH ? load<A>(exact_h_at(b, v)) : load<A>(h_at(h, b, v));
  }
  A* c_at(int64_t b, int64_t v) const { return c_ + b * units_.padded() + v * kLanes; }
  // The vectors of h that a part writes.
  int64_t first_of_h(const Part& part) const { return projects() ? second_.first(part.q0) : units_.first(part.p0); }
  int64_t end_of_h(const Part& part) const { return projects() ? second_.first(part.q1) : units_.first(part.p1); }
  // Workers that own rows project other rows of the same units.
  int64_t regions() const { return division_.by_rows ? division_.workers : 1; }
  // Row k of a chunk: the kGates vectors of gates_x for the first units; for the next they are gates_x_vector()
  // further.
  A* gates_x_of(const Worker& worker, int64_t k) const {
    const int64_t region = division_.by_rows ? worker.begin : 0;
    return gates_x_ + region * units_.vectors() * gates_x_vector() + k * kGates * kLanes;
  }
  int64_t gates_x_vector() const { return rows_ * kGates * kLanes; }
  // Whether x and h of step t are multiplied in one tile, for which their panels must have the same width. All rows of
  // the batch decide, whoever has them.
  bool is_joined(int64_t t) const {
    if (is_always_joined()) return true;
    return kAdds && args_.joining == Joining::kByRows && active(t) >= joined_rows_;
  }
  bool is_always_joined() const { return kAdds && (args_.T == 1 || args_.joining == Joining::kAlways); }
  int64_t active(int64_t t) const { return args_.active_rows(t, 0, args_.B); }
  A* first_at(int64_t b, int64_t v) const { return first_ + (v * args_.B + b) * kFirst * kLanes; }

  void run_part(const Worker& worker, const Part& part) const {
    [[maybe_unused]] const TileRegisters registers;
    for (int64_t p = worker.first(units_.panels()); p < worker.last(units_.panels()); ++p) {
      if (!packs_late_) {
        input_.pack(p, p);
        hidden_.pack(p, p);
      }
      for (int64_t v = units_.first(p); v < units_.first(p + 1); ++v) pack_biases(v);
    }
    if constexpr (kTwoProducts)
      for (int64_t q = worker.first(second_.count()); multiplied_second() && q < worker.last(second_.count()); ++q)
        if (!packs_late_) second_.pack(q, q);
    worker.wait();
    for (int64_t i = 0; i < division_.slices(part); ++i) run_slice(worker, division_.slice(part, i));
  }

  // Where x and h are added, so are their biases.
  void pack_biases(int64_t v) const {
    const auto bias = [&](const S* from, int g) {
      return from ? load<A>(from + g * args_.H + v * kLanes, units_.count(v)) : V(A(0));
    };
    for (int g = 0; g < kGates; ++g) {
      V x = bias(args_.bias_ih, g);
      const V h = bias(args_.bias_hh, g);
      if (g < kTogether)
        x += h;
      else
        store(bias_h_ + (v * Cell::kApart + g - kTogether) * kLanes, h);
      store(bias_x_ + (v * kGates + g) * kLanes, x);
    }
  }

  // All steps of some rows.
  void run_slice(const Worker& worker, const Part& part) const {
    const auto& a = args_;
    Kept *h = h_, *h_next = h + a.B * h_row();
    const int64_t v0 = units_.first(part.p0), v1 = units_.first(part.p1);
    const int64_t h0 = first_of_h(part), h1 = end_of_h(part);
    for (int64_t b = part.b0; b < part.b1; ++b) {
      for (int64_t v = h0; v < h1; ++v) {
        const V initial = a.hx ? load<A>(a.hx + b * a.P + v * kLanes, h_units_.count(v)) : V(A(0));
        for (Kept* const to : {h, h_next}) store(h_at(to, b, v), initial);
        if (kRoundsH) store(exact_h_at(b, v), initial);
      }
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t v = v0; v < v1; ++v)
          store(c_at(b, v), a.cx ? load<A>(a.cx + b * a.H + v * kLanes, units_.count(v)) : V(A(0)));
    }
    begin_sequences(part, a.reverse ? a.T - 1 : 0, h);
    if constexpr (kWhole > kLanes && !kScaled<F>)
      for (int64_t b = part.b0; b < part.b1; ++b) {
        for (Kept* const to : {h, h_next})
          if (h1 == h_units_.vectors()) end_row(h_at(to, b, 0), h_units_.padded(), a.P);
        if (between_ && v1 == units_.vectors()) end_row(between_at(b, 0), units_.padded(), a.H);
      }
    meet(worker);
    for (int64_t done = 0; done < a.T;) {
      const bool joined = is_joined(a.reverse ? a.T - 1 - done : done);
      const Chunk chunk(a, part, a.reverse, done,
                        [&](int64_t t, int64_t rows) { return rows <= rows_ && is_joined(t) == joined; });
      x_.take(worker, part, chunk);
      if (!joined) project(worker, part, chunk);
      for (int64_t i = 0; i < chunk.n; ++i) {
        const int64_t t = a.reverse ? chunk.t0 + chunk.n - 1 - i : chunk.t0 + i;
        if (joined)
          joined_step(worker, part, chunk, t, h, h_next);
        else
          step(worker, part, chunk, t, h, h_next);
        if (projects()) project_h(worker, part, chunk, t, h, h_next);
        end_step(worker, part, t, h, h_next);
        Kept* const swapped = h;
        h = h_next;
        h_next = swapped;
      }
      done += chunk.n;
    }
    for (int64_t b = part.b0; b < part.b1; ++b) {
      for (int64_t v = h0; v < h1; ++v) store(a.hy + b * a.P + v * kLanes, h_before(h, b, v), h_units_.count(v));
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t v = v0; v < v1; ++v) store(a.cy + b * a.H + v * kLanes, load<A>(c_at(b, v)), units_.count(v));
    }
  }

  // Zeros from the last vector of a row of K numbers to the end of its last word.
  static void end_row(Kept* row, int64_t padded, int64_t K) {
    for (int64_t j = padded; j < words<F>(K) * kDepth; ++j) row[j] = Kept(A(0));
  }

  // Rows of x as the products take them.
  Left<F> operand_x(const Worker& worker, const Left<F>& rows, int64_t M) const {
    return input_.operand(rows, M, operand_x_ + worker.begin * input_.operand_elements(rows_));
  }
  // M rows of h from row b on, at step t.
  Left<F> operand_h(const Worker& worker, const Kept* h, int64_t t, int64_t b, int64_t M) const {
    return operand_of(worker, hidden_, h + b * h_row(), h_row(), Left<F>::kBlock, t, M);
  }
  // The same of r * h or m, for second_.
  Left<F> operand_between(const Worker& worker, int64_t t, int64_t b, int64_t M) const {
    // No cell rounds off the sums of a projection, which take smaller parts.
    constexpr int64_t kBlock = Left<F>::kBlock / (kMayProject ? 4 : 1);
    return operand_of(worker, second_, between_ + b * between_row(), between_row(), kBlock, t, M);
  }
  // M rows, `row` apart, to be multiplied by `panels`. Few rows, of the whole batch, are added up in chains.
  template <class Panels>
  Left<F> operand_of(const Worker& worker, const Panels& panels, const Kept* rows, int64_t row, int64_t block,
                     int64_t t, int64_t M) const {
    Row* const to = operand_h_ + worker.begin * operand_h_elements();
    const int chains = chains_for(active(t));
    if constexpr (kScaled<F>) {
      RowScale* const scales = scales_h_ + worker.begin * division_.most_rows();
      const int64_t width = factors<F>(args_.H);
      for (int64_t m = 0; m < M; ++m) scales[m] = quantize(rows + m * row, multiplied_h(), to + m * width, width);
      return {to, width, kDepth, block, chains, false, false, scales};
    } else {
      return panels.operand({rows, row, kDepth, block, chains}, M, to);
    }
  }
  int64_t operand_h_elements() const {
    const int64_t rows = division_.most_rows();
    return kScaled<F> ? rows * factors<F>(args_.H)
                      : most(hidden_.operand_elements(rows), second_.operand_elements(rows));
  }
  // gates_x of a chunk: a panel of weight_ih meets all rows while it is in cache.
  void project(const Worker& worker, const Part& part, const Chunk& chunk) const {
    const auto& a = args_;
    // Whether the rows of all steps lie one after the other.
    const bool whole = !x_in_place_ || chunk.n == 1 || (part.rows() == a.B && (a.offsets || !a.active));
    const int64_t matrices = whole ? 1 : chunk.n, vector = gates_x_vector();
    in_slices(0, whole ? chunk.rows() : 1, x_row_ * int64_t(sizeof(Row)), [&](int64_t m0, int64_t m1) {
      const Left<F> x = operand_x(worker, x_.rows(worker, chunk, chunk.t0, part.b0 + m0), whole ? m1 - m0 : 0);
      each_panel(part.p0, part.p1, false, [&](int64_t p, int64_t next) {
        const Turn turn = this->turn(worker, p, next, input_);
        for (int64_t i = 0; i < matrices; ++i) {
          const int64_t t = chunk.t0 + i, rows = whole ? m1 - m0 : chunk.count(t);
          A* const gates_x = gates_x_of(worker, chunk.begin(t) + m0);
          input_.multiply(
              turn, rows, whole ? x : x_.rows(worker, chunk, t, part.b0), [](int64_t, int64_t) {},
              [&](int64_t m, int64_t v, const A* sums) {
                A* const to = gates_x + v * vector + m * kGates * kLanes;
                const A* const bias = bias_x_ + v * kGates * kLanes;
                for (int g = 0; g < kGates; ++g)
                  store(to + g * kLanes, load<A>(sums + g * kLanes) + load<A>(bias + g * kLanes));
              });
        }
      });
    });
  }

  // One step of a part: reads h, updates c, writes h_next. x and h are multiplied in one tile.
  void joined_step(const Worker& worker, const Part& part, const Chunk& chunk, int64_t t, Kept* h, Kept* h_next) const {
    const int64_t row0 = args_.row(t, 0);
    if constexpr (kAdds)
      in_slices(part.b0, part.b0 + chunk.count(t), (x_row_ + h_row()) * int64_t(sizeof(Row)),
                [&](int64_t b0, int64_t b1) {
                  const Left<F> x = operand_x(worker, x_.rows(worker, chunk, t, b0), b1 - b0);
                  const Left<F> left_h = operand_h(worker, h, t, b0, b1 - b0);
                  each_panel(part.p0, part.p1, t % 2 == 1, [&](int64_t p, int64_t next) {
                    input_.multiply_both(
                        turn(worker, p, next, input_, hidden_), b1 - b0, x, hidden_, left_h,
                        [&](int64_t m, int64_t v) { fetch_results(row0 + b0 + m, v); },
                        [&](int64_t m, int64_t v, const A* sums) {
                          V gates_h[kGates];
                          for (int g = 0; g < kGates; ++g) gates_h[g] = load<A>(sums + g * kLanes);
                          finish(t, row0, b0 + m, v, bias_x_ + v * kGates * kLanes, gates_h, h, h_next);
                        });
                  });
                });
  }

  // The same where x is projected.
  void step(const Worker& worker, const Part& part, const Chunk& chunk, int64_t t, Kept* h, Kept* h_next) const {
    const int64_t end = part.b0 + chunk.count(t), row0 = args_.row(t, 0), vector = gates_x_vector();
    const A* const first = gates_x_of(worker, chunk.begin(t) - part.b0);
    const auto gates_x = [=](int64_t b, int64_t v) { return first + v * vector + b * kGates * kLanes; };
    const int64_t row_bytes = h_row() * int64_t(sizeof(Row));
    in_slices(part.b0, end, row_bytes, [&](int64_t b0, int64_t b1) {
      const Left<F> left_h = operand_h(worker, h, t, b0, b1 - b0);
      each_panel(part.p0, part.p1, t % 2 == 1, [&](int64_t p, int64_t next) {
        hidden_.multiply(
            turn(worker, p, next, hidden_), b1 - b0, left_h,
            [&](int64_t m, int64_t v) {
              if (!Cell::kResetBefore) fetch_results(row0 + b0 + m, v);
            },
            [&](int64_t m, int64_t v, const A* sums) {
              const int64_t b = b0 + m;
              V gates_h[kGates];
              for (int g = 0; g < kFirst; ++g) gates_h[g] = load<A>(sums + g * kLanes);
              for (int g = kTogether; g < kFirst; ++g)
                gates_h[g] += load<A>(bias_h_ + (v * Cell::kApart + g - kTogether) * kLanes);
              if constexpr (Cell::kResetBefore) {
                const typename Cell::State prev{h_before(h, b, v)};
                const V r_x = load<A>(gates_x(b, v));
                store(between_at(b, v), Cell::reset(r_x, gates_h[0], prev));
                for (int g = 0; g < kFirst; ++g) store(first_at(b, v) + g * kLanes, gates_h[g]);
              } else {
                finish(t, row0, b, v, gates_x(b, v), gates_h, h, h_next);
              }
            });
      });
    });
    if constexpr (Cell::kResetBefore) {
      meet(worker);
      in_slices(part.b0, end, row_bytes, [&](int64_t b0, int64_t b1) {
        const Left<F> left_reset = operand_between(worker, t, b0, b1 - b0);
        each_panel(part.p0, part.p1, t % 2 == 1, [&](int64_t p, int64_t next) {
          second_.multiply(
              turn(worker, p, next, second_), b1 - b0, left_reset,
              [&](int64_t m, int64_t v) { fetch_results(row0 + b0 + m, v); },
              [&](int64_t m, int64_t v, const A* sums) {
                const int64_t b = b0 + m;
                V gates_h[kGates];
                for (int g = 0; g < kFirst; ++g) gates_h[g] = load<A>(first_at(b, v) + g * kLanes);
                gates_h[kFirst] = load<A>(sums);
                finish(t, row0, b, v, gates_x(b, v), gates_h, h, h_next);
              });
        });
      });
    }
  }

  // h of one step of a part, where it is projected. One function for this and the second product of `step` took up to 9
  // percent longer in a GRU of one row.
  void project_h(const Worker& worker, const Part& part, const Chunk& chunk, int64_t t, Kept* h, Kept* h_next) const {
    const int64_t row0 = args_.row(t, 0);
    meet(worker);
    if constexpr (kMayProject)
      in_slices(part.b0, part.b0 + chunk.count(t), between_row() * int64_t(sizeof(Row)), [&](int64_t b0, int64_t b1) {
        const Left<F> own = operand_between(worker, t, b0, b1 - b0);
        each_panel(part.q0, part.q1, t % 2 == 1, [&](int64_t q, int64_t next) {
          second_.multiply(
              turn(worker, q, next, second_), b1 - b0, own,
              [&](int64_t m, int64_t v) { fetch_output(row0 + b0 + m, v); },
              [&](int64_t m, int64_t v, const A* sums) {
                const int64_t b = b0 + m;
                if (t < args_.length(b))
                  store_h(row0 + b, b, v, load<A>(sums), h_next);
                else
                  skip_h(row0 + b, b, v, h, h_next);
              });
        });
      });
  }

  // For the rows that are not active at step t. Forward in time, the state of a row that has just ended is copied to
  // the other buffer; in reverse, both hold hx until a row starts. In padded arrays, `output` and `saved` become zero.
  void end_step(const Worker& worker, const Part& part, int64_t t, Kept* h, Kept* h_next) const {
    const auto& a = args_;
    const int64_t end = a.active_rows(t, part.b0, part.b1);
    const int64_t before = a.reverse || t == 0 ? end : a.active_rows(t - 1, part.b0, part.b1);
    for (int64_t b = end; b < before; ++b)
      for (int64_t v = first_of_h(part); v < end_of_h(part); ++v) store(h_at(h_next, b, v), load<A>(h_at(h, b, v)));
    for (int64_t b = end; !a.offsets && b < part.b1; ++b) {
      for (int64_t v = first_of_h(part); v < end_of_h(part); ++v) store_no_output(a.row(t, b), v);
      for (int64_t v = units_.first(part.p0); v < units_.first(part.p1); ++v) save_nothing(a.row(t, b), v);
    }
    begin_sequences(part, a.reverse ? t - 1 : t + 1, h_next);
    meet(worker);
  }

  // The state becomes zero, with h in `h`, in the rows where a new sequence begins before step t, if there is that
  // step.
  void begin_sequences(const Part& part, int64_t t, Kept* h) const {
    if (!args_.resets || t < 0 || t >= args_.T) return;
    for (int64_t b = part.b0; b < part.b1; ++b) {
      if (!args_.starts_anew(t, b)) continue;
      for (int64_t v = first_of_h(part); v < end_of_h(part); ++v) {
        store(h_at(h, b, v), V(A(0)));
        if (kRoundsH) store(exact_h_at(b, v), V(A(0)));
      }
      if constexpr (Cell::kSavedCell >= 0)
        for (int64_t v = units_.first(part.p0); v < units_.first(part.p1); ++v) store(c_at(b, v), V(A(0)));
    }
  }

  // All of h must be there before the next product.
  void meet(const Worker& worker) const {
    if (!division_.by_rows) worker.wait();
  }

  FUSED_RNN_INLINE void fetch_results(int64_t row, int64_t v) const {
    const auto& a = args_;
    if (!projects()) fetch_output(row, v);
    for (int k = 0; a.saved && k < Cell::kSaved; ++k)
      fetch_for_writing(a.saved + (row * Cell::kSaved + k) * a.H + v * kLanes, kLanes);
  }

  FUSED_RNN_INLINE void fetch_output(int64_t row, int64_t v) const {
    fetch_for_writing(args_.output + row * args_.output_row + v * kLanes, kLanes);
  }

  // The cell for row b and the units of vector v, its results to memory. `row0`: the row of b = 0 at step t.
  FUSED_RNN_INLINE void finish(int64_t t, int64_t row0, int64_t b, int64_t v, const A* gates_x,
                               const V (&gates_h)[kGates], Kept* h, Kept* h_next) const {
    const auto& a = args_;
    if (t >= a.length(b)) {
      if (!projects()) skip_h(row0 + b, b, v, h, h_next);
      return save_nothing(row0 + b, v);
    }
    V x[kGates];
    for (int g = 0; g < kGates; ++g) x[g] = load<A>(gates_x + g * kLanes);
    typename Cell::State prev;
    prev.h = h_before(h, b, v);
    if constexpr (Cell::kSavedCell >= 0) prev.c = load<A>(c_at(b, v));
    typename Cell::Saved saved;
    const typename Cell::State next = Cell::forward(x, gates_h, prev, saved);
    if (projects())
      store(between_at(b, v), next.h);
    else
      store_h(row0 + b, b, v, next.h, h_next);
    if constexpr (Cell::kSavedCell >= 0) store(c_at(b, v), next.c);
    store_saved(row0 + b, v, saved);
  }

  FUSED_RNN_INLINE void store_h(int64_t row, int64_t b, int64_t v, V h, Kept* h_next) const {
    store(args_.output + row * args_.output_row + v * kLanes, h, h_units_.count(v));
    store(h_at(h_next, b, v), rounded<S>(h));
    if (kRoundsH) store(exact_h_at(b, v), h);
  }

  // Row b is past its end, and others after it are not: its state stays.
  void skip_h(int64_t row, int64_t b, int64_t v, Kept* h, Kept* h_next) const {
    store(h_at(h_next, b, v), load<A>(h_at(h, b, v)));
    store_no_output(row, v);
  }

  void store_no_output(int64_t row, int64_t v) const {
    store(args_.output + row * args_.output_row + v * kLanes, V(A(0)), h_units_.count(v));
  }

  void save_nothing(int64_t row, int64_t v) const {
    typename Cell::Saved nothing;
    for (V& field : nothing) field = V(A(0));
    store_saved(row, v, nothing);
  }

  FUSED_RNN_INLINE void store_saved(int64_t row, int64_t v, const typename Cell::Saved& saved) const {
    const auto& a = args_;
    if (!a.saved) return;
    for (int k = 0; k < Cell::kSaved; ++k)
      store(a.saved + (row * Cell::kSaved + k) * a.H + v * kLanes, saved[k], units_.count(v));
  }

  const ForwardArgs<S>& args_;
  const Units<A, kWide> units_;
  const Units<A> h_units_;  // numbers of h
  const Division division_;
  const bool x_in_place_;  // rows of x are factors as they are
  const int64_t x_row_;
  const bool packs_late_;  // each panel just before its only use: it stays in the second-level cache
  const GatePanels<kGates, kWide, S, F> input_;
  const GatePanels<kFirst, kWide, S, F> hidden_;
  const GatePanels<1, kSecondWide, S, F> second_;  // weight_hn or weight_hr, if there is a second product
  const int64_t joined_rows_;                      // kJoinedNear or kJoinedFar
  const Scratch<A> bias_x_, bias_h_;               // [vectors, kGates, kLanes], [vectors, kApart, kLanes]
  const int64_t rows_;                             // of a chunk, at most
  const Scratch<A> gates_x_;                       // [regions, vectors, rows, kGates, kLanes]
  const InputRows<S, F> x_;
  const Scratch<Row> operand_x_, operand_h_;  // of each worker
  const Scratch<RowScale> scales_h_;          // of each worker: of rows of int8
  const Scratch<Kept> h_;                     // before and after a step: [2, B, h_row]
  const Scratch<A> exact_h_;                  // the same as a state, [B, padded], where factors are less exact
  const Scratch<Kept> between_;               // r * h or m, which second_ multiplies: [B, between_row]
  const Scratch<A> first_;                    // reset before: what r and z were made of, [vectors, B, kFirst, kLanes]
  const Scratch<A> c_;                        // [B, padded]
};

}  // namespace
}  // namespace fused_rnn
