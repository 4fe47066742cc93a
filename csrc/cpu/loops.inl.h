// The loops of one instruction set: every cell and storage type. Included by each instruction set's source file.
#pragma once

#include "backward.inl.h"
#include "forward.inl.h"
#include "isa.h"

namespace fused_rnn {
namespace {

template <template <class> class Cell, class S>
void forward(const ForwardArgs<S>& args) {
  using A = accumulate_t<S>;
  Forward<Cell<Vec<A>>, S, A>(args).run();
}

template <template <class> class Cell, class S>
void backward(const BackwardArgs<S>& args) {
  using A = accumulate_t<S>;
  Backward<Cell<Vec<A>>, S, A>(args).run();
}

template <template <class> class Cell, class S>
int64_t workers(const LayerSizes& sizes, bool backward) {
  using A = accumulate_t<S>;
  if (backward) return Backward<Cell<Vec<A>>, S, A>::division(sizes).workers;
  return Forward<Cell<Vec<A>>, S, A>::division(sizes).workers;
}

template <template <class> class Cell, class S>
CellLoops<S> loops_of_cell() {
  return {forward<Cell, S>, backward<Cell, S>, workers<Cell, S>};
}

template <class S>
Loops<S> loops() {
  return {loops_of_cell<LstmCell, S>(), loops_of_cell<GruCell, S>(), loops_of_cell<GruResetBeforeCell, S>()};
}

}  // namespace
}  // namespace fused_rnn
