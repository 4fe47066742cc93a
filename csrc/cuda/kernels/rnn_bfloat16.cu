#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<BFloat16> kernels<RnnTanhCell, BFloat16>();
template Kernels<BFloat16> kernels<RnnReluCell, BFloat16>();
}  // namespace fused_rnn
