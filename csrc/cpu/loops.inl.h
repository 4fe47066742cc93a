// The loops of one instruction set: every cell and storage type. Included by each instruction set's source file.
#pragma once

#include "backward.inl.h"
#include "forward.inl.h"
#include "isa.h"

namespace fused_rnn {
namespace {

template <template <class> class Cell, class S, class F>
void forward(const ForwardArgs<S>& args) {
  Forward<Cell<Vec<accumulate_t<S>>>, S, F>(args).run();
}

template <template <class> class Cell, class S, class F>
void backward(const BackwardArgs<S>& args) {
  Backward<Cell<Vec<accumulate_t<S>>>, S, F>(args).run();
}

template <template <class> class Cell, class S, class F>
int64_t workers(const LayerSizes& sizes, bool backward) {
  if (backward) return Backward<Cell<Vec<accumulate_t<S>>>, S, F>::division(sizes).workers;
  return Forward<Cell<Vec<accumulate_t<S>>>, S, F>::division(sizes).workers;
}

template <class S, class F, template <class> class... Cells>
Loops<S> loops_of_each(CellList<Cells...>) {
  return {CellLoops<S>{forward<Cells, S, F>, backward<Cells, S, F>, workers<Cells, S, F>}...};
}

template <class S, class F = factor_t<S>>
Loops<S> loops() {
  return loops_of_each<S, F>(AllCells{});
}

template <class Forward>
int64_t forward_workers(const LayerSizes& sizes, bool) {
  return Forward::division(sizes).workers;
}

template <class F, template <class> class... Cells>
QuantizedLoops quantized_loops_of_each(CellList<Cells...>) {
  return {
      {CellLoops<float>{forward<Cells, float, F>, nullptr, forward_workers<Forward<Cells<Vec<float>>, float, F>>}...},
      {Forward<Cells<Vec<float>>, float, F>::panel_layout()...}};
}

template <class F>
QuantizedLoops quantized_loops() {
  return quantized_loops_of_each<F>(AllCells{});
}

// The three below are templates, so that only the sets that call them compile the loops.

// All loops of a set that shares none with another.
template <class = void>
AllLoops all_loops() {
  return {
      loops<float>(),           loops<double>(), loops<BFloat16>(), loops<Float16>(), {}, quantized_loops<Widened>(),
      quantized_loops<int8_t>()};
}

// The loops of another set, but those with factors of bfloat16.
template <class = void>
AllLoops with_own_bfloat16(AllLoops all) {
  all.bfloat16 = loops<BFloat16>();
  all.reduced = loops<float, BFloat16>();
  return all;
}

// The loops of another set, but those with int8 weights.
template <class = void>
AllLoops with_own_int8(AllLoops all) {
  all.quantized_int8 = quantized_loops<int8_t>();
  return all;
}

}  // namespace
}  // namespace fused_rnn
