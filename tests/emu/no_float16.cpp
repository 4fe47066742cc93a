// In place of the kernels of float16, for the sanitizers' builds: they differ from bfloat16's in arithmetic alone, and
// take a quarter of the time of compilation.
#include "../../csrc/cuda/kernels.h"

namespace fused_rnn {

template <template <class> class Cell, class S>
Kernels<S> kernels() {
  return {};
}

template Kernels<Float16> kernels<LstmCell, Float16>();
template Kernels<Float16> kernels<GruCell, Float16>();
template Kernels<Float16> kernels<GruResetBeforeCell, Float16>();
template Kernels<Float16> kernels<RnnTanhCell, Float16>();
template Kernels<Float16> kernels<RnnReluCell, Float16>();

}  // namespace fused_rnn
