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

template <class S>
Loops<S> loops() {
  return {{forward<LstmCell, S>, backward<LstmCell, S>},
          {forward<GruCell, S>, backward<GruCell, S>},
          {forward<GruResetBeforeCell, S>, backward<GruResetBeforeCell, S>}};
}

}  // namespace
}  // namespace fused_rnn
