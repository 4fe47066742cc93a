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

template <class S, template <class> class... Cells>
Loops<S> loops_of_each(CellList<Cells...>) {
  return {CellLoops<S>{forward<Cells, S>, backward<Cells, S>, workers<Cells, S>}...};
}

template <class S>
Loops<S> loops() {
  return loops_of_each<S>(AllCells{});
}

}  // namespace
}  // namespace fused_rnn
