#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<float> kernels<LstmCell, float>();
}  // namespace fused_rnn
