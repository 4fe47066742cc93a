#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<BFloat16> kernels<LstmCell, BFloat16>();
}  // namespace fused_rnn
