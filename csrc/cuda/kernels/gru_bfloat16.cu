#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<BFloat16> kernels<GruCell, BFloat16>();
}  // namespace fused_rnn
