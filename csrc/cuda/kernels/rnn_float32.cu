#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<float> kernels<RnnTanhCell, float>();
template Kernels<float> kernels<RnnReluCell, float>();
}  // namespace fused_rnn
