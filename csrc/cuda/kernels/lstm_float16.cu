#include "../kernels.cuh"

namespace fused_rnn {
template Kernels<Float16> kernels<LstmCell, Float16>();
}  // namespace fused_rnn
