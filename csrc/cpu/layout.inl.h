// What forward and backward share: units in whole vectors, packed weights, who computes what. Included by each
// instruction set's source file.
//
// Quantized weights are in gate panels: a panel holds the columns of one vector of units, or of more if the cell has
// few gates, for all gates of a unit side by side, so that one tile of sums is all that the cell needs.
#pragma once

#include <cstdint>

#include "../recurrence.h"
#include "int8.inl.h"
#include "panels.inl.h"
#include "parallel.h"

#ifdef FUSED_RNN_AMX
#include "amx_dots.inl.h"
#else
#include "dots.inl.h"
#endif

namespace fused_rnn {
namespace {

// Gates whose matmul takes h itself: all of them, or with the reset before the matmul all but the candidate.
template <class Cell>
constexpr int kHiddenGates = Cell::kResetBefore ? Cell::kGates - 1 : Cell::kGates;

// H hidden units in vectors, and kVectors of these in a panel.
template <class A, int kVectors = 1>
struct Units {
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  int64_t H;

  int64_t vectors() const { return ceil_div(H, kLanes); }
  int64_t panels() const { return ceil_div(vectors(), kVectors); }
  int64_t first(int64_t p) const { return least(p * kVectors, vectors()); }  // vector of panel p
  int64_t padded() const { return vectors() * kLanes; }                      // H in whole vectors
  int count(int64_t v) const { return int(least(kLanes, H - v * kLanes)); }  // units of vector v
};

// Panel p, where it is packed, and where the panel is packed that is multiplied next (-1: there is none).
struct Turn {
  int64_t p, place, next;
};

// Rows [gate0*H, (gate0+NG)*H) of `weight` [G*H, K] in gate panels of NU vectors of units. Where few rows are to be
// multiplied, packing would cost more than it saves: then the weight is used where it is. Or it is packed already.
template <int NG, int NU, class S, class F>
class GatePanels {
  using A = accumulate_t<S>;
  using Sum = typename Factor<F>::A;
  static constexpr int64_t kLanes = Vec<A>::kLanes, kDepth = Factor<F>::kDepth;

 public:
  // rows: that are multiplied at once. places: of packed panels, 0 if the weight is used where it is.
  GatePanels(const S* weight, int gate0, int64_t K, int64_t H, int64_t rows, int64_t places)
      : vectors_(tile_vectors<NU * NG>(rows)),
        source_(weight + gate0 * H * K),
        K_(K),
        units_{H},
        places_(places),
        packed_(places * panel_size()),
        panels_(packed_) {}

  // The weight's panels begin with those of the gates before gate0.
  GatePanels(const QuantizedWeight& weight, int gate0, int64_t K, int64_t H)
      : vectors_(kTileVectors<NU * NG>),
        scales_(weight.scales ? weight.scales + gate0 * H : nullptr),
        K_(K),
        units_{H},
        places_(units_.panels()),
        packed_(0),
        panels_(static_cast<const F*>(weight.panels) + gate0 * Units<A>{H}.vectors() * kLanes * words<F>(K) * kDepth) {}

  // Pack panel p into a place.
  void pack(int64_t p, int64_t place) const {
    if constexpr (!kQuantized<F>) pack_rows(p, place);
  }

  // M rows as the left-hand matrix of the products below; `scratch` has operand_elements(M).
  Left<F> operand(const Left<F>& rows, [[maybe_unused]] int64_t M, [[maybe_unused]] left_t<F>* scratch) const {
    if constexpr (kUsedInPlace<F, S>)
      if (places_ == 0) return dot_operand(rows, M, K_, scratch);
    return rows;
  }
  int64_t operand_elements(int64_t M) const { return kUsedInPlace<F, S> && places_ == 0 ? dot_elements<F>(M, K_) : 0; }

  // For each vector v of panel p, which is packed in `place`, emit(m, v, sums): row m of `left` times the columns of
  // the vector's NG gates; before it, once for a panel, fetch(m, v).
  template <class Fetch, class Emit>
  FUSED_RNN_INLINE void multiply(const Turn& turn, int64_t M, Left<F> left, const Fetch& fetch,
                                 const Emit& emit) const {
    if constexpr (kUsedInPlace<F, S>)
      if (places_ == 0) return multiply_rows<1>(turn.p, M, {{left, this}}, emit);
    multiply_panels<1>(turn.p, M, {product(turn, left, bytes())}, fetch, emit);
  }

  // The same for the sum of two products: of `left` and of `other_left` times panel p of `other`, packed as this one.
  template <class Fetch, class Emit>
  FUSED_RNN_INLINE void multiply_both(const Turn& turn, int64_t M, Left<F> left, const GatePanels& other,
                                      Left<F> other_left, const Fetch& fetch, const Emit& emit) const {
    const int64_t both = bytes() + other.bytes();
    if constexpr (kUsedInPlace<F, S>)
      if (places_ == 0) return multiply_rows<2>(turn.p, M, {{left, this}, {other_left, &other}}, emit);
    multiply_panels<2>(turn.p, M, {product(turn, left, both), other.product(turn, other_left, both)}, fetch, emit);
  }

  int64_t count() const { return units_.panels(); }
  int64_t first(int64_t p) const { return units_.first(p); }  // vector of panel p

  int64_t bytes() const { return units_.panels() * panel_size() * int64_t(sizeof(F)); }  // of all panels

 private:
  struct Factors {
    Left<F> left;
    const GatePanels* right;
  };

  int64_t panel_size() const { return words<F>(K_) * NU * NG * kLanes * kDepth; }
  // `bytes`: of all matrices that are multiplied in turn with this one
  Product<F> product(const Turn& turn, const Left<F>& left, int64_t bytes) const {
    const F* const next = turn.next >= 0 && bytes > near_bytes() ? panels_ + turn.next * panel_size() : nullptr;
    return {words<F>(K_), left, {panels_ + turn.place * panel_size(), vectors_ * kLanes * kDepth}, next};
  }
  const S* row(int g, int64_t v) const { return source_ + (g * units_.H + v * kLanes) * K_; }

  // The sum of kProducts products with packed panels p.
  template <int kProducts, class Fetch, class Emit>
  FUSED_RNN_INLINE void multiply_panels(int64_t p, int64_t M, const Product<F> (&products)[kProducts],
                                        const Fetch& fetch, const Emit& emit) const {
    const int64_t v0 = units_.first(p), n = units_.first(p + 1) - v0;
    rows_times_panels<NU * NG, kProducts, F>(
        M, products,
        [&](int64_t m) __attribute__((always_inline)) {
          for (int64_t u = 0; u < n; ++u) fetch(m, v0 + u);
        },
        [&](int64_t m, const Sum* sums) __attribute__((always_inline)) {
          for (int64_t u = 0; u < n; ++u, sums += NG * kLanes)
            if constexpr (kScaled<F>) {
              alignas(64) A numbers[NG * kLanes];
              scale(products[0].left.scales[m], v0 + u, sums, numbers);
              emit(m, v0 + u, static_cast<const A*>(numbers));
            } else {
              emit(m, v0 + u, sums);
            }
        });
  }

  void pack_rows(int64_t p, int64_t place) const {
    if (places_ == 0) return;
    for (int i = 0; i < NU * NG; ++i) {
      const int64_t v = p * NU + i / NG;
      const int n = units_.count(v);
      F* to =
          packed_ + place * panel_size() + (i / vectors_ * words<F>(K_) * vectors_ + i % vectors_) * kLanes * kDepth;
      for (int64_t k = 0; k < K_; k += kLanes * kDepth) {
        Vec<A> rows[kLanes];
        for (int r = 0; r < kLanes; ++r)
          rows[r] = r < n ? load_words<F>(row(i % NG, v) + r * K_ + k, K_ - k) : Vec<A>(A(0));
        transpose(rows);
        const int64_t left = least(kLanes, words<F>(K_ - k));
        for (int64_t word = 0; word < left; ++word, to += vectors_ * kLanes * kDepth)
          std::memcpy(to, &rows[word].v, sizeof(rows[word].v));
      }
    }
  }

  // From sums of products of int8 to the numbers that they stand for: of one row, and the columns of vector v.
  FUSED_RNN_INLINE void scale(const RowScale& row, int64_t v, const Sum* sums, A* numbers) const {
    for (int g = 0; g < NG; ++g) {
      const Vec<Sum> sum = load<Sum>(sums + g * kLanes) - Vec<Sum>(row.shift);
      const Vec<A> scales = load<A>(scales_ + g * units_.H + v * kLanes, units_.count(v)) * Vec<A>(row.scale);
      store(numbers + g * kLanes, Vec<A>(__builtin_convertvector(sum.v, typename Vec<A>::Lanes)) * scales);
    }
  }

  // The sum of kProducts products with the rows of the weights where they are.
  template <int kProducts, class Emit>
  void multiply_rows(int64_t p, int64_t M, const Factors (&factors)[kProducts], const Emit& emit) const {
    for (int64_t v = units_.first(p); v < units_.first(p + 1); ++v) {
      Dots<F, S> dots[kProducts];
      for (int k = 0; k < kProducts; ++k) {
        const GatePanels& right = *factors[k].right;
        dots[k] = {factors[k].left, right.row(0, v), right.K_, units_.H * right.K_};
      }
      dot_rows<NG>(M, units_.count(v), dots, [&](int64_t m, const A* sums) { emit(m, v, sums); });
    }
  }

  int vectors_;                    // of a tile
  const S* source_ = nullptr;      // row gate0*H of the weight
  const float* scales_ = nullptr;  // of these rows, if they are int8
  int64_t K_;
  Units<A, NU> units_;
  int64_t places_;
  Scratch<F> packed_;
  const F* panels_;
};

// Copies n numbers, or zeros where there is no source, into [padded] numbers of which the rest becomes zero.
template <class T, class S>
FUSED_RNN_INLINE void copy_padded(const S* from, int64_t n, T* to, int64_t padded) {
  using A = accumulate_t<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const int64_t left = from ? most(0, least(kLanes, n - i)) : 0;
    store(to + i, left > 0 ? load<A>(from + i, int(left)) : Vec<A>(A(0)), int(least(kLanes, padded - i)));
  }
}

// Whether rows are far more than stays in the second-level cache.
inline bool are_many(int64_t bytes) { return bytes > 4 * second_level_cache(); }

// f(m0, m1) for rows [begin, end): where they are far more than stays in the second-level cache, in slices that do,
// each for all panels.
template <class SliceOfRows>
FUSED_RNN_INLINE void in_slices(int64_t begin, int64_t end, int64_t row_bytes, const SliceOfRows& f) {
  const int64_t n = end - begin, bytes = n * row_bytes;
  const int64_t slices = are_many(bytes) ? least(n, ceil_div(bytes, second_level_cache())) : 1;
  for (int64_t i = 0; i < slices; ++i) f(begin + n * i / slices, begin + n * (i + 1) / slices);
}

// How a step is divided among workers: by rows of the batch, who then never meet, or by panels of units, who meet after
// every step but read each weight only once.
struct Division {
  static constexpr int64_t kTileRows = 6;  // by rows, a worker should have as many at least,
  static constexpr int64_t kSliceRows =
      48;  // and takes so many through all steps before the next: their states stay near
  int64_t B, panels, more_panels, workers;
  bool by_rows;

  struct Part {
    int64_t b0, b1, p0 = 0, p1 = 0, q0 = 0, q1 = 0;  // rows, panels of units, more panels
    FUSED_RNN_INLINE int64_t rows() const { return b1 - b0; }
  };

  // more_panels: of h, where they are not those of the units. flops and weight_bytes: for each number of a row of x and
  // h and each unit; flops also for each row and step.
  FUSED_RNN_INLINE Division(const LayerSizes& sizes, int64_t panels, int64_t more_panels, double flops,
                            int64_t weight_bytes)
      : B(sizes.B), panels(panels), more_panels(more_panels) {
    const int64_t T = sizes.T, weights = sizes.H * (sizes.I + sizes.P);
    const bool all_near = weights * weight_bytes <= second_level_cache();  // in that of each worker
    const double call = flops * double(sizes.rows) * double(weights);
    int64_t wanted = workers_for(call, call);
    by_rows = panels < wanted ? B >= panels : all_near && B >= kTileRows * wanted;
    if (!by_rows) wanted = workers_for(call, T > 0 ? call / double(T) : call);
    workers = most(1, least(wanted, by_rows ? B : panels));
  }
  FUSED_RNN_INLINE Part part(const Worker& w) const {
    if (by_rows) return {w.first(B), w.last(B), 0, panels, 0, more_panels};
    return {0, B, w.first(panels), w.last(panels), w.first(more_panels), w.last(more_panels)};
  }
  FUSED_RNN_INLINE int64_t slices(const Part& part) const {
    return by_rows ? most(1, ceil_div(part.rows(), kSliceRows)) : 1;
  }
  FUSED_RNN_INLINE Part slice(const Part& part, int64_t i) const {
    const int64_t n = slices(part);
    return {part.b0 + part.rows() * i / n, part.b0 + part.rows() * (i + 1) / n, part.p0, part.p1, part.q0, part.q1};
  }
  FUSED_RNN_INLINE int64_t most_rows() const { return by_rows ? least(kSliceRows, ceil_div(B, workers)) : B; }
  FUSED_RNN_INLINE int64_t most_panels() const { return by_rows ? panels : ceil_div(panels, workers); }
};

// visit(p, next) for panels [p0, p1), in descending order if `down`; `next` is the panel after p, -1 after the last.
// Steps alternate: the last panels of one are still in the second-level cache when the next step begins with them.
template <class Visit>
FUSED_RNN_INLINE void each_panel(int64_t p0, int64_t p1, bool down, const Visit& visit) {
  const int64_t last = down ? p0 : p1 - 1, step = down ? -1 : 1;
  for (int64_t i = 0, p = down ? p1 - 1 : p0; i < p1 - p0; ++i, p += step) visit(p, p == last ? -1 : p + step);
}

}  // namespace
}  // namespace fused_rnn
