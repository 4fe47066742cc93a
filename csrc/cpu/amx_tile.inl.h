// Tiles of a product in the registers of AMX, with the interface of the tiles in register_tile.inl.h. Included by
// gemm.inl.h where FUSED_RNN_AMX is defined.
//
// Up to 16 rows are one row of tiles, which up to 4 tiles of the panel meet: 1 x 4. More are two rows of tiles of the
// same height, 2 x 2 at once; of an odd number of rows they share one. Every sum is one chain over K in ascending
// order, whatever the tile, so its bits do not depend on how rows were divided. Sums of int8 are exact in any order.
#pragma once

#include "amx.h"
#include "register_tile.inl.h"

namespace fused_rnn {
namespace {

// Tiles are as wide as the panel.
template <int NV>
constexpr int kTileVectors = NV;
template <int NV>
int tile_vectors(int64_t) {
  return NV;
}
template <int NV>
constexpr int kTileRows = 2 * amx::kRows;

using TileRegisters = amx::InUse;

// Elements of a row of a left-hand tile, and of a vector of a word in a panel.
template <class F>
constexpr int64_t kTileElements = amx::kRowBytes / sizeof(F);

// Up to this number of rows of int8 are multiplied in vector registers. There, 16 words of one row and one vector take
// 8 cycles; a product of tiles takes 16, whatever the number of rows.
constexpr int kFewInt8Rows = 2;

// Sums of two rows of tiles (from `low` and `high` on) with one or two vectors of a panel.
template <bool kTwo, class F, class A>
FUSED_RNN_INLINE void tiles_of_two_rows(int64_t K, const F* low, const F* high, int64_t row, const F* panel,
                                        int64_t panel_row, A* to_low, A* to_high, int64_t to_row, bool onto) {
  constexpr int64_t kLanes = Vec<A>::kLanes;
  const int64_t stride = row * int64_t(sizeof(F)), right = panel_row * int64_t(sizeof(F));
  const int64_t sums = to_row * int64_t(sizeof(A));
  if (onto) {
    amx::load<0>(to_low, sums), amx::load<1>(to_high, sums);
    if (kTwo) amx::load<2>(to_low + kLanes, sums), amx::load<3>(to_high + kLanes, sums);
  } else {
    amx::zero<0>(), amx::zero<1>();
    if (kTwo) amx::zero<2>(), amx::zero<3>();
  }
  for (int64_t k = 0; k < K; k += amx::kRows) {
    amx::load<4>(low, stride), amx::load<5>(panel, right), amx::add_product<0, 4, 5>(F());
    amx::load<6>(high, stride), amx::add_product<1, 6, 5>(F());
    if (kTwo)
      amx::load<7>(panel + kTileElements<F>, right), amx::add_product<2, 4, 7>(F()), amx::add_product<3, 6, 7>(F());
    low += kTileElements<F>, high += kTileElements<F>, panel += amx::kRows * panel_row;
  }
  amx::store<0>(to_low, sums), amx::store<1>(to_high, sums);
  if (kTwo) amx::store<2>(to_low + kLanes, sums), amx::store<3>(to_high + kLanes, sums);
}

// Calls f with each index, as a constant.
template <class F, size_t... kIndex>
FUSED_RNN_INLINE void each_constant(const F& f, std::index_sequence<kIndex...>) {
  (f(std::integral_constant<int, int(kIndex)>()), ...);
}

// Sums of one row of tiles with all vectors of a panel.
template <int NV, class F, class A>
FUSED_RNN_INLINE void tiles_of_one_row(int64_t K, const F* left, int64_t row, const F* panel, int64_t panel_row, A* to,
                                       int64_t to_row, bool onto) {
  constexpr int64_t kLanes = Vec<A>::kLanes;
  const int64_t stride = row * int64_t(sizeof(F)), right = panel_row * int64_t(sizeof(F));
  const int64_t sums = to_row * int64_t(sizeof(A));
  const auto each = [](const auto& f)
                        __attribute__((always_inline)) { each_constant(f, std::make_index_sequence<NV>()); };
  if (onto)
    each([&](auto v) __attribute__((always_inline)) { amx::load<v>(to + v * kLanes, sums); });
  else
    each([&](auto v) __attribute__((always_inline)) { amx::zero<v>(); });
  for (int64_t k = 0; k < K; k += amx::kRows) {
    amx::load<4>(left, stride);
    each([&](auto v) __attribute__((always_inline)) {
      constexpr int kRight = v % 2 ? 7 : 5;
      amx::load<kRight>(panel + v * kTileElements<F>, right), amx::add_product<v, 4, kRight>(F());
    });
    left += kTileElements<F>, panel += amx::kRows * panel_row;
  }
  each([&](auto v) __attribute__((always_inline)) { amx::store<v>(to + v * kLanes, sums); });
}

// The distance of a tile's rows in memory if it is the same for all, else 0.
template <class A>
FUSED_RNN_INLINE int64_t common_distance(A* const* rows, int count) {
  const int64_t distance = count > 1 ? rows[1] - rows[0] : Vec<A>::kLanes;
  for (int m = 1; m < count; ++m)
    if (rows[m] - rows[m - 1] != distance) return 0;
  return distance;
}

// Sums of NV vectors of a panel, for 1 to kTileRows<NV> rows, in whole tiles of K.
template <class F, int NV, class A>
void whole_tiles(int rows, int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums) {
  constexpr int64_t kLanes = Vec<A>::kLanes;
  A* to = sums.to;
  int64_t to_row = sums.row;
  bool onto = left.onto;
  const int64_t distance = sums.results && !left.onto ? common_distance(sums.results, rows) : 0;
  if (distance) to = sums.results[0], to_row = distance, onto = sums.onto;
  const int height = rows > amx::kRows ? (rows + 1) / 2 : rows;
  amx::shape_for(height);
  if (rows > amx::kRows) {
    const int64_t second = rows - height;
    for (int v = 0; v < NV; v += 2) {
      A* const low = to + v * kLanes;
      const auto multiply = [&](auto two) {
        tiles_of_two_rows<two>(K, left.data, left.data + second * left.row, left.row, panel.data + v * kTileElements<F>,
                               panel.row, low, low + second * to_row, to_row, onto);
      };
      if (v + 1 < NV)
        multiply(std::true_type());
      else
        multiply(std::false_type());
    }
  } else {
    tiles_of_one_row<NV>(K, left.data, left.row, panel.data, panel.row, to, to_row, onto);
  }
  if (!sums.results || distance) return;
  for (int m = 0; m < rows; ++m) store_row<NV>(sums.results[m], to + m * to_row, NV * int(kLanes), sums.onto);
}

// The same for any K.
template <class F, int NV, class A = typename Factor<F>::A>
FUSED_RNN_INLINE void tile_rows(int64_t K, const Left<F>& left, Panel<F> panel, const Sums<A>& sums,
                                [[maybe_unused]] const Prefetch& prefetch, int rows) {
  if constexpr (Factor<F>::kWords == amx::kRows) {
    whole_tiles<F, NV>(rows, K, left, panel, sums);
  } else {
    static_assert(kTileVectors<NV> == in_registers::kTileVectors<NV>, "both take the same panels");
    if (rows <= kFewInt8Rows) return in_registers::tile_rows<F, NV>(K, left, panel, sums, prefetch, rows);
    const int64_t whole = K / amx::kRows * amx::kRows, word = NV * kTileElements<F>;
    if (whole > 0) whole_tiles<F, NV>(rows, whole, left, panel, sums);
    if (whole == K) return;
    alignas(64) F ends[amx::kRows * NV * kTileElements<F>] = {};  // past K comes another panel
    for (int64_t k = whole; k < K; ++k)
      std::memcpy(ends + (k - whole) * word, panel.data + k * panel.row, size_t(word) * sizeof(F));
    Left<F> rest = left;
    rest.data += whole * Factor<F>::kDepth;
    rest.onto |= whole > 0;
    whole_tiles<F, NV>(rows, amx::kRows, rest, {ends, word}, sums);
  }
}

}  // namespace
}  // namespace fused_rnn
