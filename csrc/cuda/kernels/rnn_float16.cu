#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<Float16> kernels<RnnTanhCell, Float16>();
template Kernels<Float16> kernels<RnnReluCell, Float16>();
}  // namespace fused_rnn
