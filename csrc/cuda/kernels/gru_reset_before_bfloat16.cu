#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<BFloat16> kernels<GruResetBeforeCell, BFloat16>();
}  // namespace fused_rnn
